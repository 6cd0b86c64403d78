"""How far annotators agree: with each other's majority, pair by pair, and by Krippendorff's alpha."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

# one annotator's verdict on a pair of answers (prompt, a, b), a < b: 1 a is better, -1 b is better, 0 a tie
Pair = tuple[str, str, str]
Verdicts = dict[Pair, dict[str, int]]


def verdicts(rankings: Iterable[Mapping]) -> Verdicts:
    """Every pair of every ranking: pair -> {annotator: verdict}. Rankings carry prompt_id, answers, ranks."""
    found: Verdicts = defaultdict(dict)
    for ranking in rankings:
        ranked = sorted(zip(ranking["answers"], ranking["ranks"], strict=True))
        for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
            found[ranking["prompt_id"], a, b][ranking["annotator"]] = (rank_a < rank_b) - (rank_a > rank_b)
    return dict(found)


def majority(votes: Iterable[int]) -> int:
    """The sign of the sum of the votes: 1, -1, or 0 when there is no majority."""
    total = sum(votes)
    return (total > 0) - (total < 0)


def agreement_with_others(found: Verdicts) -> dict[str, tuple[float, int]]:
    """annotator -> (share of pairs ordered as the majority of the others orders them, number of such pairs).

    Pairs that the annotator or the others leave open (a tie, no majority, nobody else) do not count. The
    mean of the shares is the noise ceiling: no model can be expected to agree better with one annotator.
    """
    agreed: dict[str, list[bool]] = defaultdict(list)
    for votes in found.values():
        for annotator, vote in votes.items():
            others = majority(v for name, v in votes.items() if name != annotator)
            if vote and others:
                agreed[annotator].append(vote == others)
    return {name: (sum(hits) / len(hits), len(hits)) for name, hits in sorted(agreed.items())}


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha for ordinal values: 1 full agreement, 0 chance, below 0 systematic disagreement.

    units: for each rated thing the values it got, from any number of annotators; units with fewer than two
    values do not count. None when nothing can be compared (no such unit, or one value throughout).
    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section D with the ordinal metric.
    """
    rated = [unit for unit in units if len(unit) > 1]
    coincidences: dict[tuple[int, int], float] = defaultdict(float)
    for unit in rated:
        for i, a in enumerate(unit):
            for j, b in enumerate(unit):
                if i != j:
                    coincidences[a, b] += 1 / (len(unit) - 1)
    values = sorted({a for a, _ in coincidences})
    count = {a: sum(coincidences.get((a, b), 0.0) for b in values) for a in values}
    total = sum(count.values())

    def distance(a: int, b: int) -> float:  # how many ratings lie between the two values, squared
        between = sum(count[v] for v in values if min(a, b) <= v <= max(a, b))
        return (between - (count[a] + count[b]) / 2) ** 2

    expected = sum(count[a] * count[b] * distance(a, b) for a in values for b in values) / (total - 1 or 1)
    if not expected:
        return None
    observed = sum(n * distance(a, b) for (a, b), n in coincidences.items())
    return 1 - observed / expected


def rank_units(rankings: Iterable[Mapping]) -> list[list[int]]:
    """The units of alpha for rankings: for each answer of each prompt the ranks that it got."""
    units: dict[Hashable, list[int]] = defaultdict(list)
    for ranking in rankings:
        for answer, rank in zip(ranking["answers"], ranking["ranks"], strict=True):
            units[ranking["prompt_id"], answer].append(rank)
    return list(units.values())
