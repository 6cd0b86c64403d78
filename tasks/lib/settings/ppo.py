"""The section `ppo` of params.yaml: reinforcement learning, by PPO, RLOO or GRPO.

Values of the papers: InstructGPT (arXiv 2203.02155), LMHP (openai/lm-human-preferences), N+ (arXiv 2403.17031),
L2S (arXiv 2009.01325). The comments in params.yaml name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator


class PPOConfig(BaseModel, extra="forbid"):
    """The choices of the algorithm, in the order of one iteration (tasks/lib/rl/ppo.py)."""

    iterations: PositiveInt
    """Rounds of answering, scoring and updating; the budgets below may end the run earlier."""
    episodes: PositiveInt
    """Answers of one round."""
    epochs: PositiveInt
    """How often a round's answers are trained on; more use them better and move further from the policy that gave
    them."""
    minibatches: PositiveInt
    """Optimiser steps of one epoch, at most `episodes`; the answers are divided among them as evenly as can be."""
    batch_size: PositiveInt
    """Rows of one forward pass; lower it when memory runs out. Another number draws other answers."""
    # 1 roll out
    max_new_tokens: PositiveInt
    """Tokens of an answer, at most."""
    temperature: PositiveFloat
    """Of sampling, and of every log-probability of policy and reference."""
    streams: Literal["one", "per_pass"]
    """Whether the passes of a rollout share random numbers; `per_pass` is for several processes."""
    # 2 score
    missing_eos: Literal["replace", "penalty", "keep"]
    """What an answer without EOS gets: `missing_eos_value` alone, its score plus that value, or its score."""
    missing_eos_value: FiniteFloat
    """Below the scores of most answers, so that the policy learns to end."""
    # 3 rewards
    score_at: Literal["after_eos", "eos"]
    """Whether the state after the EOS has a value of its own, to which the score is paid."""
    beta: NonNegativeFloat
    """Price of a nat of KL from the reference, in units of the reward; higher values keep the policy closer."""
    beta_target: PositiveFloat | None
    """KL per answer, in nats, that `beta` is steered to; null leaves `beta` alone."""
    beta_horizon: PositiveFloat
    """Answers over which `beta` is steered; fewer react faster."""
    whiten_rewards: bool
    """Whether the rewards of a round are scaled to variance 1 (LMHP)."""
    # 4 advantages
    gamma: float = Field(ge=0, le=1)
    """Factor on a reward for each token that it lies ahead."""
    lam: float = Field(ge=0, le=1)
    """Between the critic's estimate (0) and the observed rewards (1)."""
    whiten_advantages: bool
    """Whether the advantages of a round are shifted and scaled to mean 0, variance 1."""
    # 5 updates
    clip_ratio: PositiveFloat
    """How far a token's probability may move within a round before its gradient stops."""
    clip_value: PositiveFloat
    """How far a value may move towards its return within a round before its gradient stops, in units of the reward."""
    value_weight: NonNegativeFloat
    """Weight of the critic's loss next to the policy's."""
    learning_rate: PositiveFloat
    """Of the policy; all weights need far less than adapters."""
    critic_learning_rate: PositiveFloat | None
    """Of a critic with a body of its own; null takes the policy's."""
    learning_rate_decay: Literal["linear", "none"]
    """Whether the learning rates fall to 0 at the last iteration."""
    adam_eps: PositiveFloat
    """Epsilon of Adam; smaller values make the first steps larger."""
    max_grad_norm: PositiveFloat | None
    """Length to which a longer gradient is cut; null cuts none."""
    # when to stop: over-optimisation (arXiv 2210.10760)
    evaluate_every: PositiveInt
    """Iterations from one evaluation on held-out prompts to the next."""
    patience: PositiveInt
    """Evaluations in a row without a better score, after which the run ends."""
    kl_budget: PositiveFloat
    """KL from the reference at `temperature`, in nats per answer, beyond which a policy is refused and the run ends."""
    max_content_loss: NonNegativeFloat | None
    """Fall of the content accuracy beyond which a policy is refused; null refuses none."""
    checkpoint_every: PositiveInt
    """Iterations that a killed run may have to repeat; does not change the result."""

    @model_validator(mode="after")
    def every_minibatch_has_an_episode(self) -> PPOConfig:
        if self.minibatches > self.episodes:
            raise ValueError(f"minibatches: {self.minibatches} is more than episodes: {self.episodes}; lower it")
        return self


class Params(PPOConfig, extra="forbid"):
    launcher: str
    """The program that starts the stage's processes; every process holds whole models."""
    method: Literal["ppo", "rloo", "grpo"]
    """The update: PPO with a critic, or TRL's RLOO and GRPO, which compare several answers to a prompt."""
    trainer: Annotated[dict[str, Any], "trl.trainer.rloo_config.RLOOConfig", "trl.trainer.grpo_config.GRPOConfig"]
    """Fields of TRL's configuration that no key of this section covers; empty with `method: ppo`."""
    reward: str | dict[str, str]
    """The reward: a model, or a check of the answer (tasks/lib/rl/verifiable_rewards.py)."""
    reward_code: Path
    """Folder of the Python files that `{function: FILE:NAME}` names."""
    disagreement_weight: NonNegativeFloat
    """How much the disagreement of an ensemble's heads lowers the reward; 0 unless `reward.heads` is above 1."""
    critic: Literal["reward", "policy"]
    """Where the critic comes from: a copy of the reward model, or a new head on the policy."""
    lora: Annotated[dict[str, Any] | None, "peft.tuners.lora.config.LoraConfig"]
    """Fields of peft's configuration of the adapters that are trained; null trains all weights."""
    vllm: str | None
    """Address of the server that draws the answers; null draws them in this process."""
    judge: Literal["gold", "reward"]
    """Who decides which policy is kept; the reward itself cannot see that it is over-optimised."""
    panel: Path
    """The file of the panel whose true utility judges. It is not read with `judge: reward`."""
    validation_prompts: PositiveInt
    """Held-out prompts of an evaluation."""

    @model_validator(mode="after")
    def settings_fit_the_method(self) -> Params:
        if self.method == "ppo" and self.trainer:
            raise ValueError("trainer is for ppo.method: rloo or grpo; PPO's settings are keys of ppo")
        if self.method != "ppo" and self.beta_target is not None:
            raise ValueError("beta_target is for ppo.method: ppo; set it to null")
        return self

    @model_validator(mode="after")
    def what_needs_a_reward_model_has_one(self) -> Params:
        if self.reward != "model":
            if self.disagreement_weight:
                raise ValueError(f"disagreement_weight needs ppo.reward: model, not {self.reward!r}")
            if self.method == "ppo" and self.critic == "reward":
                raise ValueError(f"critic: reward needs ppo.reward: model, not {self.reward!r}")
        return self
