"""The three models of PPO in one place: the policy that learns, its frozen reference, and the critic.

Shapes: B episodes, T the longest answer. A value belongs to a state: state t is the prompt and the first t answer
tokens, so T answer tokens have T+1 states.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.lib.finetuning.lora import lora_config, refuse_modules
from tasks.lib.models.logprobs import Rows, last_mlp_at_states, rows_of
from tasks.lib.models.precision import round_weights


class ActorCritic(nn.Module):
    """Policy, reference and critic. All stay in eval mode, so that no dropout disturbs the log-probs."""

    def __init__(
        self, policy: Any, reward_model: Any = None, lora: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        """Reference: the policy as given; with `lora` (fields of peft's LoraConfig), the policy with its adapters off.

        Critic: a copy of `reward_model` that begins as its normalised score (L2S, N+); without one, a linear
        head on the policy's last hidden state, zero at the start, that trains the policy's body too (LMHP).
        """
        super().__init__()
        self.adapter = self.reference_model = None
        if lora is None:
            self.reference_model = copy.deepcopy(policy).requires_grad_(False)
        else:
            self.adapter = _with_adapters(policy, lora, seed)
        self.policy = policy
        if reward_model is None:
            self.critic, self.value_head = None, _zero_head(policy)
        else:
            self.critic, self.value_head = copy.deepcopy(reward_model.base_model), _reward_head(reward_model)
            round_weights(self.critic, torch.float32)  # all of them are trained
        self.to(policy.device).eval()

    def forward(
        self, prompts: Sequence[list[int]], answers: Sequence[list[int]], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs (B, T) of the answer tokens at a temperature, and values (B, T+1) of the states."""
        rows = rows_of(prompts, answers, self.policy.device)
        with last_mlp_at_states(self.policy.base_model, rows):
            logprobs, hidden = rows.logprobs(self.policy, temperature)
        if self.critic is not None:
            hidden = _hidden_states(self.critic, rows)
        return logprobs, self._values_of(rows, hidden)

    @torch.no_grad()
    def values(self, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
        """The values (B, T+1) alone."""
        rows = rows_of(prompts, answers, self.policy.device)
        body = self.policy.base_model if self.critic is None else self.critic
        return self._values_of(rows, _hidden_states(body, rows))

    def _values_of(self, rows: Rows, hidden: Tensor) -> Tensor:
        """Values (B, T+1) of hidden states (B, W, d), W columns of prompts and answers."""
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
        head = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        if self.critic is None:
            return head
        return {f"critic.{name}": p for name, p in self.critic.named_parameters()} | head


def _hidden_states(body: Any, rows: Rows) -> Tensor:
    """The last hidden states (B, W, d) of a model's body. Only those at the states of `rows` are right."""
    with last_mlp_at_states(body, rows):
        return body(input_ids=rows.ids, use_cache=False).last_hidden_state


@torch.no_grad()
def _zero_head(policy: Any) -> nn.Linear:
    """A value head on the policy's last hidden state that gives 0."""
    head = nn.Linear(policy.get_output_embeddings().weight.shape[1], 1)  # OPT narrows its last state
    head.weight.zero_()
    head.bias.zero_()
    return head


@torch.no_grad()
def _reward_head(reward_model: Any) -> nn.Linear:
    """The reward model's head, an ensemble's averaged, so that it gives the normalised score (raw - mean) / std."""
    config = reward_model.config
    mean, std = getattr(config, "reward_mean", 0.0), getattr(config, "reward_std", 1.0)
    heads = getattr(config, "reward_heads", 1)
    head = nn.Linear(reward_model.score.in_features, 1)
    head.weight.copy_(reward_model.score.weight[:heads].float().mean(0, keepdim=True) / std)
    head.bias.fill_(-mean / std)
    return head


def _with_adapters(policy: Any, lora: Mapping[str, Any], seed: int) -> Any:
    from peft import get_peft_model

    from tasks.lib.finetuning.merged_lora import merge_in_passes  # imports peft, which takes a second

    needs_base = "the reference is the policy with its adapter off"
    config = lora_config("ppo.lora", lora, needs_base=needs_base, task_type="CAUSAL_LM")
    refuse_modules("ppo.lora", config, policy)
    merge_in_passes(config)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers 5 renamed
        torch.manual_seed(seed)
        return get_peft_model(policy, config)
