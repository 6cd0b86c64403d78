"""Which row goes to which split, and how much of each task: splits by content hash, FLAN's proportional mixing.

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
    # the shares summed to a hair less than 1: the last split that has any
    return [split for split, share in shares.items() if share > 0][-1]


def ranked(items: Iterable[T], names: Sequence[str], purpose: str) -> list[T]:
    """`items` in an order that depends on their `names` and on `purpose` only: a shuffle without a seed."""
    keyed = sorted(zip(names, items, strict=True), key=lambda pair: unit_interval(purpose, pair[0]))
    return [item for _, item in keyed]


def quotas(
    counts: Mapping[str, int],
    maximum: int,
    total: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """How many examples of each task to take, without repeating any: min(e_m, K), or its share of `total`.

    Examples-proportional mixing with a maximum: tasks beyond K examples weigh no more than K (Raffel et al. 2020,
    section 3.5.2; FLAN, arXiv 2109.01652, section 2.2, with K = 3000). `weights` (task -> factor, 1 if it is not
    named) multiply a task's size. Fractions are settled by largest remainder: the quotas of a reachable `total`
    sum to it.
    """
    sizes = {task: min(count, maximum) for task, count in counts.items()}
    return _quotas(counts, sizes, total, weights or {})


def t0_quotas(
    per_template: Mapping[str, Sequence[int]],
    maximum: int,
    total: int | None = None,
    weights: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """T0's rule: each template of a task counts all its examples, or K / templates where the task has more than K.

    `per_template` holds the examples of each template (Sanh et al. 2022, arXiv 2110.08207, section 5, with
    K = 500 000 examples of a data set).
    """
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for task, examples in per_template.items():
        counts[task] = sum(examples)
        sizes[task] = counts[task]
        if max(examples) > maximum:
            of_template = maximum // len(examples)
            sizes[task] = sum(min(count, of_template) for count in examples)
    return _quotas(counts, sizes, total, weights or {})


def _quotas(
    counts: Mapping[str, int], sizes: Mapping[str, int], total: int | None, weights: Mapping[str, float]
) -> dict[str, int]:
    """How many examples to take of tasks of these `counts`, in the proportion of their weighted `sizes`."""
    wanted: dict[str, int] = {}
    for task, size in sizes.items():
        wanted[task] = min(counts[task], round(size * weights.get(task, 1.0)))
    whole = sum(wanted.values())
    if total is None or total >= whole:
        return wanted
    # The whole part of each share of `total`, then one more for the largest remainders.
    taken: dict[str, int] = {}
    remainders: dict[str, float] = {}
    for task, size in wanted.items():
        share = size / whole * total
        taken[task] = int(share)
        remainders[task] = share - taken[task]
    by_remainder = sorted(remainders, key=lambda task: (-remainders[task], task))
    for task in by_remainder[: total - sum(taken.values())]:
        taken[task] += 1
    return taken
