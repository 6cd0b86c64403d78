"""Bootstrap intervals over rows: percentile method (Efron and Tibshirani 1993, section 13.3)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95
DRAWS = 1000
CELLS = 4_000_000  # drawn row numbers held at once: 32 MB, whatever the number of rows


class Interval(NamedTuple):
    """A mean with its interval; NaN everywhere for a mean of no rows."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean_interval(
    values: ArrayLike,
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
) -> Interval:
    """The mean of `values` (N,) and the interval that holds `level` of the bootstrap means.

    For the paired interval of two models on the same rows pass the differences by row. Values of one group of `groups`
    (N,), such as renderings of one raw row, are not independent: whole groups are drawn, and N counts groups below.
    Rows that all have one value show no spread, although the next row may differ. Where `bounds` gives the least and
    the largest value that a row can have, the interval then follows the rule of three (Hanley and Lippman-Hand 1983):
    the fraction of unseen outcomes is at most -ln((1 - level) / 2) / N. So one row proves nothing.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(sample.mean())
    sums, sizes = _grouped(sample, groups)
    if np.ptp(sample) == 0.0:  # the bootstrap would give an interval of width 0
        unseen = min(1.0, -math.log((1 - level) / 2) / sums.size) if bounds else 0.0
        lowest, highest = bounds or (mean, mean)
        return Interval(mean, mean - unseen * (mean - lowest), mean + unseen * (highest - mean))
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // sums.size)  # draws at once
    means = np.empty(draws)
    for start in range(0, draws, step):
        drawn = generator.integers(sums.size, size=(min(step, draws - start), sums.size))
        means[start : start + step] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _grouped(sample: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Per group (G,) the sum of its values and their number, groups in the order of their first row."""
    if groups is None:
        return sample, np.ones_like(sample)
    numbers: dict[Hashable, int] = {}
    index: list[int] = []  # (N,) the number of each value's group
    for group in groups:
        index.append(numbers.setdefault(group, len(numbers)))
    return np.bincount(index, weights=sample), np.bincount(index).astype(np.float64)
