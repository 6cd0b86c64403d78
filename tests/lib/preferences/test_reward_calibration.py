"""Claims about the figures of a reward model."""

from __future__ import annotations

import math

import pytest

from tasks.lib.preferences.agreement import verdicts
from tasks.lib.preferences.calibration import (
    accuracies,
    by_margin,
    calibration_error,
    confidence,
    judged_pairs,
    reliability_bins,
)

ANSWERS = ["short", "longer one", "the longest one"]
REWARDS = {("p", answer): reward for answer, reward in zip(ANSWERS, (2.0, 1.0, 0.0), strict=True)}


def ranking(annotator: str, *ranks: int) -> dict:
    return {"prompt_id": "p", "annotator": annotator, "answers": ANSWERS, "ranks": list(ranks)}


def test_accuracy_is_the_share_of_pairs_in_the_annotators_order():
    votes = verdicts([ranking("a", 0, 1, 2), ranking("b", 2, 1, 0), ranking("c", 0, 2, 1)])
    figures = accuracies(votes, REWARDS)
    assert (figures["accuracy_a"], figures["accuracy_b"]) == (1.0, 0.0)
    assert figures["accuracy_c"] == pytest.approx(2 / 3)
    assert figures["accuracy_majority"] == pytest.approx(2 / 3)  # a and c outvote b twice, b and c a once
    assert "accuracy_unanimous" not in figures  # no pair on which all agree


def test_length_alone_is_a_baseline_and_the_rewards_are_asked_where_it_fails():
    figures = accuracies(verdicts([ranking("a", 0, 1, 2)]), REWARDS)
    assert figures["accuracy_longer"] == 0.0
    assert figures["accuracy_longer_is_worse"] == 1.0


def test_ties_are_nobodys_pair_and_equal_rewards_are_half_right():
    votes = verdicts([ranking("a", 0, 0, 1)])
    assert len(judged_pairs(votes, REWARDS)) == 2
    flat = dict.fromkeys(REWARDS, 1.0)
    assert {pair.hit for pair in judged_pairs(votes, flat)} == {0.5}


def test_margins_go_from_unsure_to_sure():
    buckets = by_margin(judged_pairs(verdicts([ranking("a", 0, 1, 2)]), REWARDS), buckets=3)
    assert buckets == [(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]


def test_confidence_is_the_probability_given_no_tie():
    assert confidence([math.log(3), -math.log(3)], "drop", 1.0) == pytest.approx([0.75, 0.75])
    assert confidence([math.log(3)], "davidson", 5.0) == pytest.approx([0.75])  # a tie takes from both alike
    # Rao-Kupper, theta 2, strengths 3 and 1: 3/5 against 1/7
    assert confidence([math.log(3)], "rao_kupper", 2.0) == pytest.approx([0.6 / (0.6 + 1 / 7)])


def test_calibration_error_by_hand():
    # 2 of 4 right at 0.95 (off by 0.45), 3 of 4 right at 0.75 (right on)
    bins = reliability_bins([0.95] * 4 + [0.75] * 4, [1, 1, 0, 0, 1, 1, 1, 0])
    assert [row["count"] for row in bins] == [4, 4]
    assert calibration_error(bins) == pytest.approx(0.225)
