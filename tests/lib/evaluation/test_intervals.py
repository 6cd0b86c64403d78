"""Bootstrap intervals hold the true mean as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.lib.evaluation import intervals
from tasks.lib.evaluation.intervals import Interval, mean_interval


def covered(groups: bool, pairs: bool = False) -> float:
    """The share of 300 samples (100 rows, true mean 0.7) whose interval holds 0.7."""
    generator, hits = np.random.default_rng(0), 0
    for seed in range(300):
        values = (generator.random(50 if pairs else 100) < 0.7).astype(float)
        if pairs:  # every value twice: two renderings of one raw row that agree
            values = np.repeat(values, 2)
        names = [place // 2 for place in range(100)] if groups else None
        interval = mean_interval(values, seed=seed, groups=names, draws=300)
        hits += interval.low <= 0.7 <= interval.high
    return hits / 300


def test_95_of_100_intervals_hold_the_mean() -> None:
    assert 0.91 <= covered(groups=False) <= 0.98


def test_rows_that_repeat_each_other_need_groups() -> None:
    assert covered(groups=False, pairs=True) < 0.88
    assert 0.91 <= covered(groups=True, pairs=True) <= 0.98


def test_the_width_is_that_of_the_normal_approximation() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    interval = mean_interval(values, seed=1, draws=4000)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert interval.mean == 0.75
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.08)


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    generator = np.random.default_rng(0)
    first = (generator.random(400) < 0.6).astype(float)
    second = np.where(generator.random(400) < 0.02, 1 - first, first)
    paired = mean_interval(first - second, seed=0)
    alone = mean_interval(first, seed=0)
    assert (paired.high - paired.low) < 0.6 * (alone.high - alone.low)


def test_one_row_proves_nothing() -> None:
    assert mean_interval([1.0], seed=0, bounds=(0.0, 1.0)) == Interval(1.0, 0.0, 1.0)
    assert mean_interval([1.0] * 5, seed=0, bounds=(0.0, 1.0)).low <= 0.5
    assert mean_interval([1.0] * 40, seed=0, bounds=(0.0, 1.0)).low > 0.5


def test_equal_rows_follow_the_rule_of_three() -> None:
    interval = mean_interval([0.0] * 100, seed=0, bounds=(0.0, 1.0))
    assert (interval.mean, interval.low) == (0.0, 0.0)
    assert interval.high == pytest.approx(0.0369, abs=1e-4)  # -ln(0.025) / 100
    assert mean_interval([2.5] * 9, seed=0) == Interval(2.5, 2.5, 2.5)  # nothing is known of unbounded values


def test_no_rows_give_nan_and_never_an_error() -> None:
    assert all(math.isnan(end) for end in mean_interval([], seed=0))


def test_the_seed_decides_and_the_size_of_a_block_does_not_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    first = mean_interval(values, seed=3, draws=501)
    assert first == mean_interval(values, seed=3, draws=501) != mean_interval(values, seed=4, draws=501)
    monkeypatch.setattr(intervals, "CELLS", 500)  # ten draws at a time
    assert mean_interval(values, seed=3, draws=501) == pytest.approx(first, abs=0.05)
