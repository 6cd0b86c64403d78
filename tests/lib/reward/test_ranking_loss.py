"""Claims about the ranking loss, with numbers that can be checked by hand."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from tasks.lib.reward.ranking_loss import pair_losses, pairs, ranking_loss

WON, TIED = torch.tensor([False]), torch.tensor([True])


def loss(rewards: list[float], ranks: list[int], **options: object) -> float:
    return ranking_loss(torch.tensor([rewards]), torch.tensor([ranks]), **options).item()  # type: ignore[arg-type]


def test_pairwise_ranking_loss_is_bradley_terry():
    assert loss([0.0, 0.0], [0, 1]) == pytest.approx(math.log(2))
    assert loss([math.log(3), 0.0], [0, 1]) == pytest.approx(-math.log(3 / 4))  # odds 3 to 1
    assert loss([math.log(3), 0.0], [1, 0]) == pytest.approx(-math.log(1 / 4))


def test_a_ranking_of_k_costs_the_mean_of_its_pair_losses():
    rewards, ranks = [0.3, -1.2, 2.0, 0.7], [2, 3, 0, 1]
    by_rank = [rewards[ranks.index(place)] for place in range(4)]
    pair_costs = [loss([better, worse], [0, 1]) for better, worse in combinations(by_rank, 2)]
    assert loss(rewards, ranks) == pytest.approx(sum(pair_costs) / 6, abs=1e-6)


def test_every_ranking_weighs_the_same_whatever_its_k():
    rewards = torch.tensor([[1.0, 0.0, 9.0], [0.5, 0.2, -0.4]])
    ranks = torch.tensor([[0, 1, -1], [0, 1, 2]])  # the first ranking has two answers and a padded place
    both = (loss([1.0, 0.0], [0, 1]) + loss([0.5, 0.2, -0.4], [0, 1, 2])) / 2
    assert ranking_loss(rewards, ranks).item() == pytest.approx(both)


def test_an_answer_that_was_not_ranked_gets_no_gradient():
    rewards = torch.tensor([[1.0, 0.0, 9.0]], requires_grad=True)
    ranking_loss(rewards, torch.tensor([[0, 1, -1]])).backward()
    assert rewards.grad is not None
    assert rewards.grad[0, 2] == 0
    assert rewards.grad[0, 0] == pytest.approx(-1 / (1 + math.e), abs=1e-6)


def test_ties_can_be_dropped():
    assert loss([5.0, 1.0, 0.0], [0, 0, 1]) == pytest.approx((loss([5.0, 0.0], [0, 1]) + loss([1.0, 0.0], [0, 1])) / 2)
    rewards = torch.tensor([[1.0, 2.0]], requires_grad=True)
    value = ranking_loss(rewards, torch.tensor([[0, 0]]))
    value.backward()
    assert value.item() == 0 and rewards.grad is not None and not rewards.grad.any()


@pytest.mark.parametrize(("ties", "parameter"), [("rao_kupper", 1.7), ("davidson", 0.6)])
def test_win_loss_and_tie_are_probabilities(ties, parameter):
    for d in (-2.0, 0.0, 0.4, 3.0):
        win = pair_losses(torch.tensor([d]), WON, ties, parameter)
        lose = pair_losses(torch.tensor([-d]), WON, ties, parameter)
        tie = pair_losses(torch.tensor([d]), TIED, ties, parameter)
        assert sum(math.exp(-x.item()) for x in (win, lose, tie)) == pytest.approx(1, abs=1e-6)


def test_rao_kupper_by_hand():
    # equal strengths, theta 2: P(win) = 1 / (1 + 2), so P(tie) = 1/3
    assert loss([0.0, 0.0], [0, 1], ties="rao_kupper", tie_parameter=2.0) == pytest.approx(math.log(3))
    assert loss([0.0, 0.0], [0, 0], ties="rao_kupper", tie_parameter=2.0) == pytest.approx(math.log(3))
    # strengths 4 and 1, theta 2: P(win) = 4 / (4 + 2 * 1)
    assert loss([math.log(4), 0.0], [0, 1], ties="rao_kupper", tie_parameter=2.0) == pytest.approx(-math.log(2 / 3))


def test_davidson_by_hand():
    # strengths 4 and 1, nu 1: 4 : 1 : sqrt(4) of 7
    options = {"ties": "davidson", "tie_parameter": 1.0}
    assert loss([math.log(4), 0.0], [0, 1], **options) == pytest.approx(-math.log(4 / 7))
    assert loss([math.log(4), 0.0], [1, 0], **options) == pytest.approx(-math.log(1 / 7))
    assert loss([math.log(4), 0.0], [0, 0], **options) == pytest.approx(-math.log(2 / 7))


def test_a_tie_draws_rewards_together():
    rewards = torch.tensor([[1.0, 0.0]], requires_grad=True)
    ranking_loss(rewards, torch.tensor([[0, 0]]), ties="rao_kupper", tie_parameter=1.5).backward()
    assert rewards.grad is not None and rewards.grad[0, 0] > 0 > rewards.grad[0, 1]


def test_centring_adds_the_squared_sum():
    assert loss([2.0, 1.0], [0, 1], centring=0.01) == pytest.approx(loss([2.0, 1.0], [0, 1]) + 0.01 * 9)


def test_a_margin_asks_for_more_of_pairs_that_are_no_tie():
    margins = torch.tensor([1.5])
    assert loss([2.0, 0.5], [0, 1], margins=margins) == pytest.approx(math.log(2))
    tied = {"ties": "davidson", "tie_parameter": 1.0}
    assert loss([2.0, 0.5], [0, 0], margins=margins, **tied) == loss([2.0, 0.5], [0, 0], **tied)


def test_weights_are_those_of_a_weighted_mean_of_rankings():
    rewards, ranks = torch.tensor([[1.0, 0.0], [0.2, 0.4]]), torch.tensor([[0, 1], [0, 1]])
    found = ranking_loss(rewards, ranks, weights=torch.tensor([3.0, 1.0])).item()
    assert found == pytest.approx((3 * loss([1.0, 0.0], [0, 1]) + loss([0.2, 0.4], [0, 1])) / 4)
    same = ranking_loss(rewards, ranks, weights=torch.tensor([2.0, 2.0])).item()
    assert same == pytest.approx(ranking_loss(rewards, ranks).item())


def test_pairs_put_the_better_answer_first():
    row, better, worse, is_tie = pairs(torch.tensor([[2, 0, 0]]))
    assert row.tolist() == [0, 0, 0]
    assert list(zip(better.tolist(), worse.tolist(), is_tie.tolist(), strict=True)) == [
        (1, 0, False),
        (2, 0, False),
        (1, 2, True),
    ]


def test_impossible_tie_parameters_are_refused():
    with pytest.raises(ValueError, match="above 1"):
        loss([0.0, 0.0], [0, 0], ties="rao_kupper", tie_parameter=1.0)
