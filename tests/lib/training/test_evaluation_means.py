"""Figures of an evaluation are means over its rows or tokens, not over its batches."""

from __future__ import annotations

import pytest
import torch

from tasks.lib.training.evaluation_means import EvaluationMeans, sizes_of


def test_batches_count_by_their_size() -> None:
    means = EvaluationMeans()
    accuracies: list[float] = []
    for loss, accuracy, pairs in ((1.0, 0.5, 4), (4.0, 1.0, 1)):
        accuracies.append(accuracy)
        means.add(loss, {"rewards/accuracies": accuracies}, {"all": pairs})
    assert means.loss() == pytest.approx((4 * 1.0 + 4.0) / 5)
    assert means.figures() == {"rewards/accuracies": [pytest.approx(0.6)]}


def test_a_side_without_answers_counts_nothing_and_margins_are_between_the_means() -> None:
    """Three good answers with rewards 1, 1, 4 and a bad one with -1, in a batch of two good ones and one of both."""
    means, figures = EvaluationMeans(), {"rewards/chosen": [1.0]}
    means.add(0.5, figures, {"all": 2, "chosen": 2, "rejected": 0})
    figures = {"rewards/chosen": [1.0, 4.0], "rewards/rejected": [-1.0], "rewards/margins": [5.0]}
    means.add(0.5, figures, {"all": 2, "chosen": 1, "rejected": 1})
    found = means.figures()
    assert found["rewards/chosen"] == [pytest.approx(2.0)]
    assert found["rewards/margins"] == [pytest.approx(3.0)]


def test_the_size_of_a_batch_is_what_its_loss_is_a_mean_over() -> None:
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, 3, -100]])  # the first token is predicted by none
    assert sizes_of({"labels": labels}) == {"all": 3}
    assert sizes_of({"completion_mask": torch.ones(6, 4)}) == {"all": 3}
    assert sizes_of({"label": torch.tensor([True, False, True])}) == {"all": 3, "chosen": 2, "rejected": 1}
