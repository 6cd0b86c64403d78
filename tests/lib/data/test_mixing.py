"""Splits and mixing follow from content and counts, by arithmetic that a hand can check."""

from __future__ import annotations

from collections import Counter

from tasks.lib.data.mixing import quotas, ranked, split_of, t0_quotas

SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}


def test_quotas_take_no_example_twice_and_sum_to_the_total() -> None:
    counts = {"a": 10, "b": 30, "c": 500}
    assert quotas(counts, 30) == {"a": 10, "b": 30, "c": 30}
    assert quotas(counts, 30, total=7) == {"a": 1, "b": 3, "c": 3}
    assert quotas(counts, 30, total=8) == {"a": 1, "b": 4, "c": 3}  # 1.14, 3.43, 3.43: one more, by name
    assert quotas(counts, 30, total=1000) == {"a": 10, "b": 30, "c": 30}
    for total in range(71):
        taken = quotas(counts, 30, total)
        assert sum(taken.values()) == total and all(taken[task] <= counts[task] for task in counts)


def test_a_split_depends_on_content_and_shares_only() -> None:
    splits = [split_of(f"row {i}", SHARES) for i in range(10_000)]
    assert splits == [split_of(f"row {i}", SHARES) for i in range(10_000)]
    shares = Counter(splits)
    assert all(abs(shares[split] / 10_000 - share) < 0.02 for split, share in SHARES.items())


def test_moving_one_edge_moves_only_the_rows_between() -> None:
    narrower = {"train": 0.45, "validation": 0.25, "test": 0.3}
    moved = {
        (split_of(f"row {i}", SHARES), split_of(f"row {i}", narrower))
        for i in range(3000)
        if split_of(f"row {i}", SHARES) != split_of(f"row {i}", narrower)
    }
    assert moved == {("train", "validation")}


def test_ranking_ignores_the_order_and_the_neighbours() -> None:
    names = [f"row {i}" for i in range(50)]
    order = ranked(names, names, "purpose")
    assert ranked(names[::-1], names[::-1], "purpose") == order != names
    assert ranked(names[:25], names[:25], "purpose") == [name for name in order if name in names[:25]]
    assert ranked(names, names, "another") != order


def test_weights_scale_a_task_and_never_repeat_rows() -> None:
    counts = {"a": 100, "b": 100}
    assert quotas(counts, 100, weights={"a": 0.5}) == {"a": 50, "b": 100}
    assert quotas(counts, 40, weights={"a": 2.0}) == {"a": 80, "b": 40}
    assert quotas(counts, 100, weights={"b": 3.0}) == {"a": 100, "b": 100}
    assert quotas(counts, 100, total=60, weights={"a": 0.5}) == {"a": 20, "b": 40}


def test_t0_divides_a_large_task_among_its_templates() -> None:
    # at most 100: a task of 300 rows through 5 templates counts 5 x 100 / 5, one of 90 through 2 all its 180
    assert t0_quotas({"large": [300] * 5, "small": [90, 90]}, 100) == {"large": 100, "small": 180}
    assert t0_quotas({"large": [300] * 5, "small": [90, 90]}, 100, total=28) == {"large": 10, "small": 18}
