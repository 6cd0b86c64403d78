"""How far annotators agree: their verdicts on pairs of answers, the majority of these, and Krippendorff's alpha."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row

Pair = tuple[str, str, str]  # prompt_key and two of its answers, the first before the second in the order of their text
Verdicts = dict[Pair, dict[str, int]]  # pair -> {annotator: 1 the first answer is better, -1 the second is, 0 a tie}
Hits = list[tuple[str, bool]]  # (prompt_key, whether the verdict on a pair was that of the others)


def with_prompt_keys(rankings: Iterable[Row]) -> list[Row]:
    """Copies of rankings (rows of the schema RANKING) that also carry the `prompt_key` of their prompt."""
    return [{**ranking, "prompt_key": prompt_key(ranking["prompt"])} for ranking in rankings]


def verdicts(rankings: Iterable[Row]) -> Verdicts:
    """What every annotator says about every two answers to a prompt: pair -> {annotator: verdict}.

    A ranking carries prompt_key, annotator, answers, and ranks (0 best, equal = tie). Of an annotator whose rankings
    of a prompt share a pair, the last one's verdict on that pair counts.
    """
    votes: Verdicts = defaultdict(dict)
    for ranking in rankings:
        by_text = sorted(zip(ranking["answers"], ranking["ranks"], strict=True))
        for (first, first_rank), (second, second_rank) in combinations(by_text, 2):
            pair = ranking["prompt_key"], first, second
            votes[pair][ranking["annotator"]] = _sign(second_rank - first_rank)  # a smaller rank is better
    return dict(votes)


def majority(votes: Iterable[int]) -> int:
    """What most verdicts on a pair say: 1 the first answer is better, -1 the second is, 0 as many say one as the other.

    Ties among the verdicts count for neither side.
    """
    return _sign(sum(votes))


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def hits_with_others(votes: Verdicts) -> dict[str, Hits]:
    """annotator -> (prompt_key, whether the majority of the others orders the pair as they do) of every pair.

    Pairs that the annotator or the others leave open (a tie, no majority, nobody else) do not count.
    """
    hits: dict[str, Hits] = defaultdict(list)
    for (key, _, _), by_annotator in votes.items():
        total = sum(by_annotator.values())
        for annotator, verdict in by_annotator.items():
            others = _sign(total - verdict)
            if verdict != 0 and others != 0:
                hits[annotator].append((key, verdict == others))
    return dict(sorted(hits.items()))


def share_of_hits(hits: Hits) -> float:
    """The share of pairs ordered as the others order them, of at least one pair."""
    return sum(hit for _, hit in hits) / len(hits)


def agreement_with_others(votes: Verdicts) -> dict[str, tuple[float, int]]:
    """annotator -> (share of pairs ordered as the majority of the others orders them, number of such pairs).

    The mean of the shares is the noise ceiling: no model can be expected to agree better with one annotator.
    """
    agreement = {}
    for annotator, hits in hits_with_others(votes).items():
        agreement[annotator] = share_of_hits(hits), len(hits)
    return agreement


def reliability(votes: Verdicts, rounds: int = 50) -> dict[str, float]:
    """annotator -> probability of ordering a pair as it truly is, none known beforehand.

    Dawid and Skene (Applied Statistics 1979) for two classes and one error rate per annotator: expectation
    of the true order of each pair, weighing annotators by their rates, and rates from these expectations,
    in turn. Ties say nothing: an annotator who has only ties is left out. Rates begin at 0.7 and stay within 0.01 and
    0.99; a pair that one annotator alone orders leaves the rate as it is.
    """
    # One entry per verdict that is no tie, V in all.
    pair_numbers: list[int] = []
    annotators: list[str] = []
    verdict_list: list[int] = []
    for number, by_annotator in enumerate(votes.values()):
        for annotator, verdict in by_annotator.items():
            if verdict != 0:
                pair_numbers.append(number)
                annotators.append(annotator)
                verdict_list.append(verdict)
    names, who = np.unique(annotators, return_inverse=True)  # who (V,): the place of the annotator in names
    if not len(names):
        return {}
    pair = np.array(pair_numbers)
    verdict_of = np.array(verdict_list, dtype=np.float64)
    rate = np.full(len(names), 0.7)
    for _ in range(rounds):
        log_odds = np.log(rate / (1 - rate))
        evidence = np.bincount(pair, verdict_of * log_odds[who], len(votes))
        first_is_better = 1 / (1 + np.exp(-evidence))  # (pairs,) probability in truth
        hit = np.where(verdict_of > 0, first_is_better[pair], 1 - first_is_better[pair])
        rate = np.clip(np.bincount(who, hit) / np.bincount(who), 0.01, 0.99)
    return dict(zip(names.tolist(), rate.tolist(), strict=True))


def rank_units(rankings: Iterable[Row]) -> dict[str, list[list[int]]]:
    """The units of alpha for rankings, by prompt_key: for each answer the ranks that it got."""
    ranks_of: dict[str, dict[str, list[int]]] = {}
    for ranking in rankings:
        by_answer = ranks_of.setdefault(ranking["prompt_key"], {})
        for answer, rank in zip(ranking["answers"], ranking["ranks"], strict=True):
            by_answer.setdefault(answer, []).append(rank)
    return {key: list(by_answer.values()) for key, by_answer in ranks_of.items()}


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values: 1 full agreement, 0 chance, below 0 systematic disagreement.

    units: for each rated thing the values it got, from any number of annotators; units with fewer than two
    values do not count. None when nothing can be compared (no such unit, or one value throughout).
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D with the ordinal metric.
    """
    rated = _compared(units)
    return _alpha(_coincidences(rated, _values(rated)))


def alpha_interval(
    units_by_prompt: Mapping[str, Sequence[Sequence[int]]], seed: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """The bootstrap interval of alpha over prompts, whose answers are not independent; None without alpha."""
    rated: list[list[Sequence[int]]] = []  # the compared units of every prompt that has some
    every_unit: list[Sequence[int]] = []
    for units in units_by_prompt.values():
        compared = _compared(units)
        if compared:
            rated.append(compared)
            every_unit += compared
    if not rated:
        return None
    values = _values(every_unit)
    tables = np.array([_coincidences(units, values) for units in rated])  # (prompts, values, values)
    generator = np.random.default_rng(seed)
    alphas: list[float] = []
    for _ in range(draws):
        drawn = generator.integers(len(tables), size=len(tables))
        times_drawn = np.bincount(drawn, minlength=len(tables))
        alpha = _alpha(np.tensordot(times_drawn, tables, 1))
        if alpha is not None:
            alphas.append(alpha)
    if not alphas:
        return None
    low, high = np.quantile(alphas, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _compared(units: Iterable[Sequence[int]]) -> list[Sequence[int]]:
    """The units that got at least two values."""
    return [unit for unit in units if len(unit) > 1]


def _values(units: Iterable[Sequence[int]]) -> list[int]:
    """All values in order, each once."""
    return sorted(set().union(*units))


def _coincidences(units: Iterable[Sequence[int]], values: Sequence[int]) -> np.ndarray:
    """(V, V): how often each value (rows) meets each other value (columns) of a unit, over the unit's size less one."""
    table = np.zeros((len(values), len(values)))
    for unit in units:
        counts = np.array([unit.count(value) for value in values], dtype=np.float64)
        table += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    return table


def _alpha(coincidences: np.ndarray) -> float | None:
    """Alpha of a table of coincidences (V, V); None when all values are one."""
    count = coincidences.sum(axis=1)
    below = np.cumsum(count) - count / 2  # ratings below a value, and half of those at it
    distance = (below[:, None] - below[None, :]) ** 2  # how many ratings lie between two values, squared
    total = count.sum()
    expected = (np.outer(count, count) * distance).sum() / (total - 1 or 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else None
