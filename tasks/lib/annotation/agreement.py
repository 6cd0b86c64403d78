"""How far annotators agree: with each other's majority, pair by pair, and by Krippendorff's alpha."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

# one annotator's verdict on a pair of answers (prompt, a, b), a < b: 1 a is better, -1 b is better, 0 a tie
Pair = tuple[str, str, str]
Verdicts = dict[Pair, dict[str, int]]


def verdicts(rankings: Iterable[Mapping]) -> Verdicts:
    """Every pair of every ranking: pair -> {annotator: verdict}. Rankings carry prompt_key, answers, ranks."""
    found: Verdicts = defaultdict(dict)
    for ranking in rankings:
        ranked = sorted(zip(ranking["answers"], ranking["ranks"], strict=True))
        for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
            found[ranking["prompt_key"], a, b][ranking["annotator"]] = (rank_a < rank_b) - (rank_a > rank_b)
    return dict(found)


def majority(votes: Iterable[int]) -> int:
    """The sign of the sum of the votes: 1, -1, or 0 when there is no majority."""
    total = sum(votes)
    return (total > 0) - (total < 0)


def hits_with_others(found: Verdicts) -> dict[str, list[tuple[str, bool]]]:
    """annotator -> (prompt id, whether the majority of the others orders the pair as they do), per pair.

    Pairs that the annotator or the others leave open (a tie, no majority, nobody else) do not count.
    """
    agreed: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for (prompt, _, _), votes in found.items():
        for annotator, vote in votes.items():
            others = majority(v for name, v in votes.items() if name != annotator)
            if vote and others:
                agreed[annotator].append((prompt, vote == others))
    return dict(sorted(agreed.items()))


def agreement_with_others(found: Verdicts) -> dict[str, tuple[float, int]]:
    """annotator -> (share of pairs ordered as the majority of the others orders them, number of such pairs).

    The mean of the shares is the noise ceiling: no model can be expected to agree better with one annotator.
    """
    return {
        name: (sum(hit for _, hit in hits) / len(hits), len(hits)) for name, hits in hits_with_others(found).items()
    }


def reliability(found: Verdicts, rounds: int = 50) -> dict[str, float]:
    """annotator -> probability of ordering a pair as it truly is, none known beforehand.

    Dawid and Skene (Applied Statistics 1979) for two classes and one error rate per annotator: expectation
    of the true order of each pair, weighing annotators by their rates, and rates from these expectations,
    in turn. Ties say nothing. Rates stay within 0.01 and 0.99; one worker in a pair counts half a hit.
    """
    pairs = [said for votes in found.values() if (said := {n: v for n, v in votes.items() if v})]
    names = sorted({name for said in pairs for name in said})
    number = {name: place for place, name in enumerate(names)}
    pair = np.array([place for place, said in enumerate(pairs) for _ in said], dtype=np.int64)
    who = np.array([number[name] for said in pairs for name in said], dtype=np.int64)
    vote = np.array([vote for said in pairs for vote in said.values()], dtype=np.float64)
    if not names:
        return {}
    rate = np.full(len(names), 0.7)
    for _ in range(rounds):
        odds = np.bincount(pair, vote * np.log(rate / (1 - rate))[who], len(pairs))
        is_first = 1 / (1 + np.exp(-odds))  # probability that the first answer is truly better
        hit = np.where(vote > 0, is_first[pair], 1 - is_first[pair])
        rate = np.clip(np.bincount(who, hit) / np.bincount(who), 0.01, 0.99)
    return dict(zip(names, rate.tolist(), strict=True))


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values: 1 full agreement, 0 chance, below 0 systematic disagreement.

    units: for each rated thing the values it got, from any number of annotators; units with fewer than two
    values do not count. None when nothing can be compared (no such unit, or one value throughout).
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D with the ordinal metric.
    """
    rated = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in rated for value in unit})
    return _alpha(sum((_coincidences(unit, values) for unit in rated), np.zeros((len(values),) * 2)))


def alpha_interval(
    units_by_prompt: Mapping[str, Sequence[Sequence[int]]], seed: int, draws: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """The bootstrap interval of alpha over prompts, whose answers are not independent; None without alpha."""
    rated = {key: [unit for unit in units if len(unit) > 1] for key, units in units_by_prompt.items()}
    values = sorted({value for units in rated.values() for unit in units for value in unit})
    empty = np.zeros((len(values),) * 2)
    tables = np.array(
        [sum((_coincidences(unit, values) for unit in units), empty) for units in rated.values() if units]
    )
    generator, found = np.random.default_rng(seed), []
    for _ in range(draws if len(tables) else 0):
        drawn = generator.integers(len(tables), size=len(tables))
        found.append(_alpha(np.tensordot(np.bincount(drawn, minlength=len(tables)), tables, 1)))
    known = [alpha for alpha in found if alpha is not None]
    if not known:
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _coincidences(unit: Sequence[int], values: Sequence[int]) -> np.ndarray:
    """How often each value (rows) meets each other value (columns) of the unit, over its size less one."""
    counts = np.array([unit.count(value) for value in values], dtype=np.float64)
    return (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)


def _alpha(coincidences: np.ndarray) -> float | None:
    count = coincidences.sum(axis=1)
    below = np.cumsum(count) - count / 2  # ratings below a value, and half of those at it
    distance = (below[:, None] - below[None, :]) ** 2  # how many ratings lie between two values, squared
    total = count.sum()
    expected = (np.outer(count, count) * distance).sum() / (total - 1 or 1)
    return float(1 - (coincidences * distance).sum() / expected) if expected > 0 else None


def rank_units(rankings: Iterable[Mapping]) -> dict[str, list[list[int]]]:
    """The units of alpha for rankings, by prompt id: for each answer the ranks that it got."""
    units: dict[str, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for ranking in rankings:
        for answer, rank in zip(ranking["answers"], ranking["ranks"], strict=True):
            units[ranking["prompt_key"]][answer].append(rank)
    return {prompt: list(of_prompt.values()) for prompt, of_prompt in units.items()}
