"""Claims about agreement figures."""

from __future__ import annotations

import pytest

from tasks.lib.preferences.agreement import (
    agreement_with_others,
    krippendorff_alpha,
    majority,
    rank_units,
    verdicts,
)


def ranking(annotator: str, *ranks: int, prompt: str = "p") -> dict:
    return {
        "prompt_id": prompt,
        "annotator": annotator,
        "answers": ["x", "y", "z"][: len(ranks)],
        "ranks": list(ranks),
    }


def test_krippendorffs_own_example():
    """Krippendorff (2011), the data of section C: 4 observers, 12 units; ordinal alpha is 0.815."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[v for v in unit if v is not None] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_two_annotators_by_hand():
    # values 0 and 1, two each per annotator, agreeing once on each of 4 units: D_o = 0, so alpha = 1
    assert krippendorff_alpha([[0, 0], [1, 1]]) == pytest.approx(1)
    # always opposed: observed 4 of 4, expected 8/3 of 4 (n = 4, n - 1 = 3): 1 - 4 * 3 / 8 = -0.5
    assert krippendorff_alpha([[0, 1], [1, 0]]) == pytest.approx(-0.5)


def test_alpha_is_undefined_without_anything_to_compare():
    assert krippendorff_alpha([[1], [2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None


def test_agreement_with_the_others_majority():
    rankings = [ranking("a", 0, 1), ranking("b", 0, 1), ranking("c", 1, 0)]
    # a: the others (b, c) have no majority; c: the others agree against c
    assert agreement_with_others(verdicts(rankings)) == {"c": (0.0, 1)}
    rankings.append(ranking("d", 0, 1))
    assert agreement_with_others(verdicts(rankings)) == {
        "a": (1.0, 1),
        "b": (1.0, 1),
        "c": (0.0, 1),
        "d": (1.0, 1),
    }


def test_ties_have_no_say():
    assert agreement_with_others(verdicts([ranking("a", 0, 0), ranking("b", 0, 1)])) == {}
    assert [majority(votes) for votes in ([1, 1, -1], [1, -1], [0, -1], [])] == [1, 0, -1, 0]


def test_verdicts_do_not_depend_on_the_order_of_the_answers():
    turned = {"prompt_id": "p", "annotator": "b", "answers": ["y", "x"], "ranks": [1, 0]}
    assert verdicts([ranking("a", 0, 1), turned]) == {("p", "x", "y"): {"a": 1, "b": 1}}


def test_rank_units_are_the_ranks_of_each_answer():
    assert rank_units([ranking("a", 0, 1), ranking("b", 1, 0)]) == [[0, 1], [1, 0]]
