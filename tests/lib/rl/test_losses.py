"""The formulas of post-training, by hand and against slower ways to say the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tasks.lib.rl.losses import (
    adaptive_beta,
    approx_kl,
    gae,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)

ALL = torch.ones(1, 4, dtype=torch.bool)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_masked_mean_looks_at_true_positions_only() -> None:
    mask = torch.tensor([[True, True, False]])
    assert masked_mean(row(1, 3, float("nan")), mask) == 2
    assert masked_mean(row(1.0, 3.0, 5.0), ~torch.ones(1, 3, dtype=torch.bool)) == 0


def test_whitening_takes_the_population_variance() -> None:
    """1 2 3 4: mean 2.5, population variance 1.25 (the unbiased one is 1.667)."""
    expected = (torch.arange(1.0, 5) - 2.5) / math.sqrt(1.25)
    torch.testing.assert_close(whiten(row(1, 2, 3, 4), ALL)[0], expected)
    torch.testing.assert_close(whiten(row(1, 2, 3, 4), ALL, shift=False)[0], expected + 2.5)


def test_masked_whitening_is_whitening_without_the_padding() -> None:
    padded = torch.tensor([[1.0, 2, 99], [3, 4, -99]])
    mask = torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(whiten(padded, mask)[mask], whiten(row(1, 2, 3, 4), ALL)[0])
    assert (whiten(padded, mask)[~mask] == 0).all()


@pytest.mark.parametrize("values", [(0.7,), (0.3, 0.3, 0.3)])
def test_whitening_a_constant_or_a_single_value_gives_zero(values: tuple[float, ...]) -> None:
    mask = torch.ones(1, len(values), dtype=torch.bool)
    assert whiten(row(*values), mask).abs().max() < 1e-3


def test_gae_by_hand() -> None:
    """gamma 1, lambda 0.5, rewards 0 0 1, values 0.5 0.5 0.5: deltas 0 0 0.5, advantages 0.125 0.25 0.5."""
    advantages, returns = gae(row(0, 0, 1), row(0.5, 0.5, 0.5), gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantages, row(0.125, 0.25, 0.5))
    torch.testing.assert_close(returns, row(0.625, 0.75, 1.0))


def test_gae_is_the_double_sum_of_the_paper() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 7, dtype=torch.double), torch.randn(3, 7, dtype=torch.double)
    gamma, lam = 0.9, 0.8
    following = F.pad(values[:, 1:], (0, 1))
    deltas = rewards + gamma * following - values
    slow = torch.zeros_like(values)
    for t in range(7):
        for k in range(7 - t):
            slow[:, t] += (gamma * lam) ** k * deltas[:, t + k]
    torch.testing.assert_close(gae(rewards, values, gamma, lam)[0], slow)


def test_gae_with_lambda_1_is_return_minus_value_and_with_0_one_step() -> None:
    rewards, values = row(1, 2, 3), row(0.1, 0.2, 0.3)
    torch.testing.assert_close(gae(rewards, values, 1.0, 1.0)[0], row(6 - 0.1, 5 - 0.2, 3 - 0.3))
    torch.testing.assert_close(gae(rewards, values, 1.0, 0.0)[0], row(1.1, 2.1, 2.7))


def test_zeros_past_the_end_do_not_reach_back() -> None:
    short = gae(row(0.5, 1), row(0.2, 0.4))[0]
    padded = gae(row(0.5, 1, 0, 0), row(0.2, 0.4, 0, 0))[0]
    torch.testing.assert_close(padded, F.pad(short, (0, 2)))


def test_the_first_minibatch_has_ratio_1_and_approximate_kl_0() -> None:
    logprobs = row(-1.0, -2, -3, -4).requires_grad_()
    advantages = row(1, -1, 2, 0)
    loss, clipped = ppo_policy_loss(logprobs, logprobs.detach(), advantages, ALL)
    assert loss.item() == -0.5  # minus the mean advantage
    assert clipped == 0
    assert approx_kl(logprobs, logprobs.detach(), ALL) == 0
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 4)  # REINFORCE


def test_the_policy_loss_stops_pushing_beyond_the_clip() -> None:
    """Ratio 1.5 with clip 0.2: A = 1 gives -1.2 and no gradient; A = -1 gives 1.5 and a gradient."""
    logprobs = torch.full((1, 2), math.log(1.5)).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, clipped = ppo_policy_loss(logprobs, torch.zeros(1, 2), row(1, -1), mask)
    assert loss.item() == pytest.approx((-1.2 + 1.5) / 2)
    assert clipped == 0.5
    loss.backward()
    torch.testing.assert_close(logprobs.grad, row(0.0, 0.75))


def test_the_value_loss_is_half_the_larger_square() -> None:
    """Old 0, new 1, return 2, clip 0.2: max(1, 1.8^2) / 2 = 1.62; return 0: max(1, 0.04) / 2 = 0.5."""
    one = torch.ones(1, 1, dtype=torch.bool)
    assert ppo_value_loss(row(1.0), row(0.0), row(2.0), one).item() == pytest.approx(1.62)
    assert ppo_value_loss(row(1.0), row(0.0), row(0.0), one).item() == pytest.approx(0.5)


def test_approximate_kl_is_half_the_mean_square() -> None:
    assert approx_kl(row(0.1, 0.3), row(0.0, 0.0), ALL[:, :2]).item() == pytest.approx((0.01 + 0.09) / 4)


def test_padding_changes_no_ppo_loss() -> None:
    mask = torch.tensor([[True, True, False]])
    a, b, c = row(-1, -2, math.inf), row(-1.1, -1.9, -5), row(0.5, -0.5, 9)
    plain_a, plain_b, plain_c, plain_mask = a[:, :2], b[:, :2], c[:, :2], mask[:, :2]
    assert ppo_policy_loss(a, b, c, mask)[0] == ppo_policy_loss(plain_a, plain_b, plain_c, plain_mask)[0]
    assert ppo_value_loss(a, b, c, mask) == ppo_value_loss(plain_a, plain_b, plain_c, plain_mask)
    assert approx_kl(a, b, mask) == approx_kl(plain_a, plain_b, plain_mask)


def test_adaptive_beta_follows_the_closed_form() -> None:
    """KL twice the target: the error is clipped to 0.2, so beta grows by 0.2 * 100 / 1000 = 2 % a step."""
    beta = 0.1
    for step in range(1, 6):
        beta = adaptive_beta(beta, kl=12, target=6, horizon=1000, episodes=100)
        assert beta == pytest.approx(0.1 * 1.02**step)
    assert adaptive_beta(0.1, 6, 6, 1000, 100) == 0.1
    assert adaptive_beta(0.1, 6.6, 6, 1000, 100) == pytest.approx(0.1 * 1.01)
    assert adaptive_beta(0.1, 0, 6, 1000, 100) == pytest.approx(0.1 * 0.98)
