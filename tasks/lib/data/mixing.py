"""Who goes where, and how much of each task: splits by content hash, FLAN's examples-proportional mixing.

Nothing here draws random numbers: a row's place follows from its content, so other rows that come or go never
move it, and every run agrees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def unit_interval(*words: str) -> float:
    """A number in [0, 1) that depends on `words` only, uniform over different words."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_of(content: str, shares: Mapping[str, float]) -> str:
    """The split of a row by the hash of its content; `shares` (split -> share) sum to 1, in this order."""
    place, edge = unit_interval("split", content), 0.0
    for split, share in shares.items():
        edge += share
        if place < edge:
            return split
    return next(split for split in reversed(list(shares)) if shares[split] > 0)  # rounding of the last edge


def ranked(items: Iterable[T], names: Sequence[str], purpose: str) -> list[T]:
    """`items` in an order that depends on their `names` and on `purpose` only: a shuffle without a seed."""
    keyed = sorted(zip(names, items, strict=True), key=lambda pair: unit_interval(purpose, pair[0]))
    return [item for _, item in keyed]


def mixing_rates(counts: Mapping[str, int], maximum: int) -> dict[str, float]:
    """Examples-proportional mixing with a maximum: the share of each task, min(e_m, K) / sum_n min(e_n, K).

    Tasks beyond the maximum of K examples weigh no more than K (Raffel et al. 2020, section 3.5.2; FLAN,
    arXiv 2109.01652, section 2.2, with K = 3000).
    """
    capped = {task: min(count, maximum) for task, count in counts.items()}
    total = sum(capped.values())
    return {task: count / total if total else 0.0 for task, count in capped.items()}


def quotas(counts: Mapping[str, int], maximum: int, total: int | None = None) -> dict[str, int]:
    """How many examples of each task to take, without repeating any: min(e_m, K), or its share of `total`.

    Fractions are settled by largest remainder, so the quotas of a reachable `total` sum to it.
    """
    capped = {task: min(count, maximum) for task, count in counts.items()}
    if total is None or total >= sum(capped.values()):
        return capped
    exact = {task: rate * total for task, rate in mixing_rates(counts, maximum).items()}
    taken = {task: int(share) for task, share in exact.items()}
    by_remainder = sorted(exact, key=lambda task: (taken[task] - exact[task], task))
    for task in by_remainder[: total - sum(taken.values())]:
        taken[task] += 1
    return taken
