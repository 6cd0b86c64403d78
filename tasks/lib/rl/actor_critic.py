"""The three models of PPO in one place: the policy that learns, its frozen reference, and the critic.

Shapes: B episodes, T the longest answer. A value belongs to a state: state t is the prompt and the first t answer
tokens, so T answer tokens have T+1 states.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.lib.models.logprobs import Rows, last_mlp_at_states, rows_of
from tasks.lib.settings.ppo import Lora
from tasks.lib.training.distributed import is_sharded


class ActorCritic(nn.Module):
    """Policy, reference and critic. All stay in eval mode: no dropout, and gradients do not mind."""

    def __init__(self, policy: Any, reward_model: Any = None, lora: Lora | None = None, seed: int = 0) -> None:
        """Reference: the policy as given; with `lora`, the policy with its adapters off.

        Critic: a copy of `reward_model` that begins as its normalised score (L2S, N+); without one, a linear
        head on the policy's last hidden state, zero at the start, that trains the policy's body too (LMHP).
        """
        super().__init__()
        self.reference_model = None if lora else copy.deepcopy(policy).requires_grad_(False)
        self.adapter = _with_adapters(policy, lora, seed) if lora else None
        self.policy = policy
        self.critic = None if reward_model is None else copy.deepcopy(reward_model.base_model)
        self.value_head = nn.Linear(policy.config.hidden_size, 1)
        with torch.no_grad():
            if reward_model is None:
                self.value_head.weight.zero_()
                self.value_head.bias.zero_()
            else:
                self.value_head = nn.Linear(reward_model.config.hidden_size, 1)
                mean = getattr(reward_model.config, "reward_mean", 0.0)
                std = getattr(reward_model.config, "reward_std", 1.0)
                heads = getattr(reward_model.config, "reward_heads", 1)
                self.value_head.weight.copy_(reward_model.score.weight[:heads].mean(0, keepdim=True) / std)
                self.value_head.bias.fill_(-mean / std)
        self.to(policy.device).eval()

    def forward(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs (B, T) of the answer tokens at a temperature, and values (B, T+1) of the states."""
        rows = rows_of(prompts, answers, self.policy.device)
        with last_mlp_at_states(self.policy.base_model, rows):
            logprobs, hidden = rows.logprobs(self.policy, temperature)
        if self.critic is not None:
            hidden = self._states_of(self.critic, rows)
        return logprobs, self._of_states(rows, hidden)

    @torch.no_grad()
    def values(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
        """The values (B, T+1) alone."""
        rows = rows_of(prompts, answers, self.policy.device)
        body = self.policy.base_model if self.critic is None else self.critic
        return self._of_states(rows, self._states_of(body, rows))

    def _states_of(self, body: Any, rows: Rows) -> Tensor:
        """Hidden states (B, W, d), right at the states of `rows` alone."""
        with last_mlp_at_states(body, rows):
            return body(input_ids=rows.ids, use_cache=False).last_hidden_state

    def _of_states(self, rows: Rows, hidden: Tensor) -> Tensor:
        """Values (B, T+1) of hidden states (B, W, d)."""
        return self.value_head(rows.at_states(hidden).float()).squeeze(-1)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The reference model."""
        if self.adapter is None:
            yield self.reference_model
        else:
            with self.adapter.disable_adapter():
                yield self.policy

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """What of the policy learns, by name: all of it, or its adapters."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def critic_parameters(self) -> dict[str, nn.Parameter]:
        """What of the critic learns, by name."""
        body = {} if self.critic is None else {f"critic.{n}": p for n, p in self.critic.named_parameters()}
        return body | {f"value_head.{n}": p for n, p in self.value_head.named_parameters()}

    def merged(self) -> Any:
        """The policy as a plain model, adapters merged into its weights. The last thing to ask for."""
        return self.policy if self.adapter is None else self.adapter.merge_and_unload()


def _with_adapters(policy: Any, lora: Lora, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    from tasks.lib.rl.merged_lora import MergedLinear  # imports peft, which takes a second

    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear"
    )
    if not is_sharded():
        config._register_custom_module({nn.Linear: MergedLinear})
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers 5 renamed
        torch.manual_seed(seed)
        return get_peft_model(policy, config)
