"""Figures of classifiers and regressions, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from tasks.lib.evaluation.classification import classification_figures, regression_figures, spearman

LABELS = ["a", "a", "a", "a", "b", "b", "c", "c"]
PREDICTED = ["a", "a", "a", "b", "b", "b", "a", "c"]


def test_accuracy_recall_f1_and_confusion_are_counts() -> None:
    """a: 4 rows, predicted 4 times, 3 right; b: 2, predicted 3 times, 2 right; c: 2, predicted once, 1 right."""
    figures = classification_figures(LABELS, PREDICTED, "a", seed=0)
    assert figures["accuracy"] == 6 / 8 and figures["majority_accuracy"] == 4 / 8
    assert figures["accuracy_low"] < 6 / 8 < figures["accuracy_high"]
    assert (figures["recall.a"], figures["recall.b"], figures["recall.c"]) == (3 / 4, 1, 1 / 2)
    assert figures["balanced_accuracy"] == pytest.approx((3 / 4 + 1 + 1 / 2) / 3)
    assert figures["f1.a"] == 6 / 8 and figures["f1.b"] == 4 / 5 and figures["f1.c"] == 2 / 3
    assert figures["macro_f1"] == pytest.approx((6 / 8 + 4 / 5 + 2 / 3) / 3)
    confusion = {key: value for key, value in figures.items() if key.startswith("confusion.")}
    assert confusion == {"confusion.a.a": 3, "confusion.a.b": 1, "confusion.b.b": 2, "confusion.c.a": 1,
                         "confusion.c.c": 1}  # fmt: skip


def test_a_constant_answer_has_the_balanced_accuracy_of_chance_whatever_the_shares() -> None:
    """Nine of ten rows are `fine`: always saying so is right in 0.9 of them, and worth nothing."""
    figures = classification_figures(["fine"] * 9 + ["fraud"], ["fine"] * 10, "fine", seed=0)
    assert figures["accuracy"] == figures["majority_accuracy"] == 0.9
    assert figures["balanced_accuracy"] == figures["chance"] == 0.5
    assert figures["macro_f1"] == figures["majority_macro_f1"] == pytest.approx(2 * 9 / 19 / 2)


def test_a_label_that_is_predicted_but_never_occurs_counts_against_macro_f1_alone() -> None:
    figures = classification_figures(["a", "b"], ["a", "c"], "a", seed=0)
    assert figures["macro_f1"] == pytest.approx(1 / 3) and figures["chance"] == 1 / 2


def test_a_regression_is_compared_with_the_median_of_the_training_rows() -> None:
    """Median 2: errors of the guess 1, 0, 8; of the model 0, 1, 2."""
    figures = regression_figures([1.0, 2.0, 10.0], [1.0, 3.0, 8.0], [1.0, 2.0, 50.0], seed=0)
    assert figures["mae"] == 1.0 and figures["median_mae"] == 3.0 and figures["mae_gain"] == 2.0
    assert figures["spearman"] == pytest.approx(1.0)


def test_spearman_takes_ties_at_their_mean_rank() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 4, 3: sums of products 3, of squares 4.5 and 5."""
    assert spearman([1, 2, 2, 9], [10, 20, 40, 30]) == pytest.approx(3.0 / (4.5 * 5) ** 0.5)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0.0


def test_spearman_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = [3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
