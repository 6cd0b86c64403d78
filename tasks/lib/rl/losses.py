"""The formulas of post-training, and nothing else: torch in, torch out, no model, no file.

Shapes: B rows, T tokens (or steps), V vocabulary. A mask is boolean and True where a token counts.
LMHP = openai/lm-human-preferences; N+ = "The N+ Implementation Details of RLHF with PPO" (arXiv 2403.17031).
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (any shape) where `mask` (same shape) is True; 0 where nothing is."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """Scale to variance 1 over the True positions, and to mean 0 if `shift`; False positions become 0.

    The population variance with eps 1e-8, as in LMHP (TRL took the unbiased one): a single value, or a
    constant, has variance 0 and whitens to 0 (or, unshifted, to itself times 1e4 at most).
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift else whitened + mean, 0)


def gae(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: advantages (B, T) and returns (B, T) of rewards and values (B, T).

    A_t = sum_k (gamma lam)^k delta_{t+k},  delta_t = r_t + gamma V_{t+1} - V_t,  V_T = 0 (arXiv 1506.02438,
    eq. 16). Positions past the end of an episode must hold 0 in both inputs; they then add nothing.
    """
    advantages = torch.zeros_like(values)
    following_value = following_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following_advantage = advantages[:, t] = delta + gamma * lam * following_advantage
        following_value = values[:, t]
    return advantages, advantages + values


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO (arXiv 1707.06347, eq. 7), negated; inputs (B, T).

    Returns the mean over the True positions, and the share of them where the clipped term was taken.
    """
    ratio = torch.where(mask, logprobs - old_logprobs, 0).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return masked_mean(torch.max(unclipped, clipped), mask), masked_mean((clipped > unclipped).float(), mask)


def ppo_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """0.5 * mean(max((V - R)^2, (clip(V, V_old +- clip) - R)^2)) over True positions; inputs (B, T)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * masked_mean(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def approx_kl(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """0.5 * mean((log pi - log pi_old)^2) over True positions, in nats per token; inputs (B, T) (LMHP)."""
    return 0.5 * masked_mean((logprobs - old_logprobs) ** 2, mask)


def adaptive_beta(beta: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """The next KL coefficient: beta (1 + clip(kl / target - 1, +-0.2) episodes / horizon) (LMHP).

    `kl` and `target` are nats per sequence, `horizon` is in episodes.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)
