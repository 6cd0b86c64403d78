"""When PPO stops instead of training on noise: the messages, and the warnings when there is nothing to learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tasks.lib.stage import Problem

SAME = 1e-3  # |log ratio| of two passes over the same weights; float32 in other batches gives about 1e-5


def check_scores(scores: Tensor, ids: Sequence[str], iteration: int) -> None:
    """Problem, which names the prompts, for scores (N,) that are not finite."""
    is_finite = torch.isfinite(scores).tolist()
    bad = [name for name, finite in zip(ids, is_finite, strict=True) if not finite]
    if bad:
        where = f"ppo: iteration {iteration}: the reward"
        raise Problem(f"{where} is not finite for the prompts {_listed(bad)}; check models/reward")


def check_answers_end(has_eos: Tensor, iteration: int, max_new_tokens: int, missing_eos: str) -> None:
    """A warning when no answer has an EOS; Problem if that is so at the start and all scores would be replaced."""
    if has_eos.any():
        return
    what = f"ppo: iteration {iteration}: none of {len(has_eos)} answers ended"
    if iteration == 1 and missing_eos == "replace":
        raise Problem(f"{what} within {max_new_tokens} tokens; raise ppo.max_new_tokens or train sft longer")
    print(f"{what} (warning)", flush=True)


def warn_of_equal_scores(scores: Tensor, iteration: int) -> None:
    """Say so when every answer got the same score (N,)."""
    if len(scores) > 1 and bool((scores == scores[0]).all()):
        same = f"ppo: iteration {iteration}: every answer got the reward {scores[0]:.4g}"
        print(f"{same}; only the KL penalty is learned from (warning)", flush=True)


def check_first_pass(figures: Mapping[str, float], iteration: int) -> None:
    """Problem unless the policy before the first step gives the log-probs that were scored."""
    if not figures["largest_log_ratio"] < SAME:
        raise Problem(
            f"ppo: iteration {iteration}: before the first step the policy is not the one that was scored: "
            f"|log ratio| {figures['largest_log_ratio']:.3g}, expected 0; its numbers are not repeatable"
        )


def check_step(figures: Mapping[str, float], ids: Sequence[str], iteration: int) -> None:
    """Problem, which names the prompts of the minibatch, when its loss or gradient is not finite."""
    if not math.isfinite(figures["loss"] + figures["grad_norm"]):
        raise Problem(
            f"ppo: iteration {iteration}: the loss is {figures['loss']:.3g}, its gradient's norm "
            f"{figures['grad_norm']:.3g} on the prompts {_listed(ids)}; no step was taken; lower ppo.learning_rate"
        )


def _listed(ids: Sequence[str]) -> str:
    """The first five, and how many more."""
    if len(ids) <= 5:
        return ", ".join(ids)
    return f"{', '.join(ids[:5])} and {len(ids) - 5} more"
