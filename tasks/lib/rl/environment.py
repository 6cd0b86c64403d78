"""What the policy learns from: prompts, the reward of an answer, and the judge that compares policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Prompt, TokenIds

RewardFunction = Callable[[Batch], list[float]]  # a score per answer


@dataclass(frozen=True)
class Environment:
    """What a policy is trained on. With several processes, all call `reward` and `judge` with equal batches."""

    prompts: Sequence[Prompt]
    validation: Sequence[Prompt]
    reward: RewardFunction
    # figures of answers to the validation prompts: at least `judge`, by which policies are compared, and `content` if
    # `max_content_loss` is set
    judge: Callable[[Batch], dict[str, float]]
    eos_id: int
    pad_id: int
    seed_of: Callable[..., int]
    # (models, prompts, seed) -> an answer to each prompt, by another engine with the same weights; None: by the policy
    generate: Callable[[ActorCritic, TokenIds, int], TokenIds] | None = None
