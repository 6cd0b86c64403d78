"""Claims about the figures of a reward model."""

from __future__ import annotations

import math

import pytest

from tasks.lib.annotation.agreement import verdicts
from tasks.lib.reward.accuracy import OrderedPair, accuracies, best_possible, by_margin, by_source, ordered_pairs
from tasks.lib.reward.baselines import bag_of_words
from tasks.lib.reward.calibration import (
    calibration_error,
    confidence,
    reliability_bins,
    scaled_confidence,
    temperature,
)
from tasks.lib.reward.groups import Group
from tasks.lib.reward.score_distribution import histogram, score_figures

ANSWERS = ["short", "longer one", "the longest one"]
REWARDS = {("p", answer): reward for answer, reward in zip(ANSWERS, (2.0, 1.0, 0.0), strict=True)}


def ranking(annotator: str, *ranks: int) -> dict:
    return {"prompt_key": "p", "annotator": annotator, "answers": ANSWERS, "ranks": list(ranks)}


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
    assert len(ordered_pairs(votes, REWARDS)) == 2
    flat = dict.fromkeys(REWARDS, 1.0)
    assert {pair.hit for pair in ordered_pairs(votes, flat)} == {0.5}


def test_margins_go_from_unsure_to_sure():
    buckets = by_margin(ordered_pairs(verdicts([ranking("a", 0, 1, 2)]), REWARDS), parts=3)
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


def test_the_temperature_makes_the_average_confidence_right():
    # 3 of 4 pairs of margin 2 right: sigmoid(2 / T) must be 3/4, so T = 2 / ln 3
    assert temperature([2.0, 2.0, 2.0, -2.0]) == pytest.approx(2 / math.log(3), rel=1e-6)
    assert temperature([1.0, 2.0]) == pytest.approx(1 / 50, rel=1e-6)  # never wrong: as sure as is allowed


def test_each_half_of_the_prompts_is_scaled_as_the_other_half_says():
    # even prompts (hex 2): right 3 of 4 at margin 2; odd ones (hex 1): right 9 of 10 at margin 1
    even = [OrderedPair("2", "a", margin, 0) for margin in (2.0, 2.0, 2.0, -2.0)]
    odd = [OrderedPair("1", "a", margin, 0) for margin in (1.0,) * 9 + (-1.0,)]
    sure = scaled_confidence([*even, *odd])
    assert sure[0] == pytest.approx(1 / (1 + (1 / 9) ** 2), rel=1e-6)  # sigmoid(2 ln 9)
    assert sure[-1] == pytest.approx(1 / (1 + (1 / 3) ** 0.5), rel=1e-6)  # sigmoid(ln(3) / 2)


def test_no_ordering_exceeds_the_annotators_contradictions():
    votes = verdicts([ranking("a", 0, 1, 2), ranking("b", 0, 1, 2), ranking("c", 2, 1, 0)])
    assert best_possible(votes) == pytest.approx(2 / 3)
    assert best_possible(verdicts([ranking("a", 0, 0, 0)])) is None


def test_accuracy_by_source():
    pairs = ordered_pairs(verdicts([ranking("a", 0, 1, 2), ranking("b", 2, 1, 0)]), REWARDS)
    assert by_source(pairs, {("p", "a"): "a tool", ("p", "b"): "z"}) == {
        "accuracy_source_a_tool": 1.0,
        "accuracy_source_z": 0.0,
    }


def test_where_scores_lie_and_how_they_go_with_length():
    figures = score_figures([0.0, 1.0, 2.0], ["x", "xx", "xxx"])
    assert figures["score_p50"] == 1.0 and figures["score_p25"] == 0.5
    assert figures["score_length_correlation"] == pytest.approx(1.0)
    assert "score_length_correlation" not in score_figures([0.0, 1.0], ["x", "y"])
    rows = histogram([[0.0, 1.0], [1.0]], [[False, True], [False]], bins=2)
    assert [(row["reward"], row["best"], row["others"]) for row in rows] == [(0.25, 0, 0.5), (0.75, 1, 0.5)]


def test_a_bag_of_words_sees_style_and_no_prompt():
    def group(prompt: str, best: str, worst: str) -> Group:
        return Group(prompt, [], [best, worst], [[0, 1]])

    train = [group(str(n), f"w{n} please", f"w{n}") for n in range(4)]
    train += [group("x", "left", "right"), group("y", "right", "left")]  # only the prompt could tell
    heldout = [group("a", "new please", "new"), group("b", "left", "right")]
    style, content = (of_prompt.squeeze(1).tolist() for of_prompt in bag_of_words(train, heldout))
    assert style[0] > style[1] + 0.5 and content[0] == pytest.approx(content[1], abs=1e-6)
