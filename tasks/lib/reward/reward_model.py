"""The reward model: the policy's body with a linear head that reads the last token of an answer.

Stored as a transformers AutoModelForSequenceClassification folder. An output of the head is a raw reward or an
attribute: the first `reward_heads` outputs (1 where config.json does not say) are raw rewards, an ensemble on one body
(ensemble.py), and the reward is their mean. The outputs behind them are `reward_attributes`, to be scaled by
`reward_attribute_scales`, (mean, std) of each. config.json also holds `reward_mean` and `reward_std`, those of the raw
rewards of reference answers: `score` gives (raw - mean) / std.

transformers' own forward of such a model looks for the last token by pad id, which is wrong where the pad
token is the EOS; here the length of a sequence says where its last token is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.batches import batches_by_length, right_pad
from tasks.lib.models.loading import load_model
from tasks.lib.models.pass_size import scoring_tokens
from tasks.lib.stage import Problem


def from_policy(policy: Any, seed: int, heads: int = 1, attributes: Sequence[str] = ()) -> Any:
    """A reward model on the policy's body; heads N(0, 1/sqrt(d + 1)) without bias (arXiv 2009.01325).

    Problem when the architecture has no sequence classification in transformers.
    """
    config = copy.deepcopy(policy.config)
    config.num_labels = heads + len(attributes)
    if config.num_labels > 1:
        config.reward_heads, config.reward_attributes = heads, [*attributes]
    model = untrained(config, policy.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    weight = head(model).float().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1] + 1))
    return model.eval().to(policy.device)


def untrained(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A reward model of this configuration with random weights. Problem when its kind has none in transformers."""
    from transformers import AutoModelForSequenceClassification

    try:
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    except ValueError:
        raise Problem(
            f"{config.model_type} has no sequence classification in transformers; choose another base"
        ) from None
    head(model)
    return model


def head(model: Any) -> Any:
    """The linear layer (outputs, d) from a hidden state to rewards; Problem when the model has none."""
    layer = getattr(model, "score", None)
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
        raise Problem(f"{type(model).__name__} has no plain linear head named score; choose another base model")
    return layer


def head_outputs(model: Any, states: Tensor) -> Tensor:
    """The outputs (B, N) of the head for hidden states (B, d), in float32, in which the head is trained."""
    layer = head(model)
    outputs: Tensor = layer(states.to(layer.weight.dtype)).float()
    return outputs


def room_of(model: Any) -> int | None:
    """The most tokens that the model can read at once; None where its configuration does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def heads_of(model: Any, outputs: Tensor) -> Tensor:
    """The raw rewards by head (..., heads) among all outputs (..., N) of the model."""
    return outputs[..., : getattr(model.config, "reward_heads", 1)]


def attributes_of(model: Any, outputs: Tensor) -> Tensor:
    """The attributes (..., A) that the model predicts, in their own units, among all its outputs (..., N)."""
    scales = torch.tensor(getattr(model.config, "reward_attribute_scales", [])).reshape(-1, 2)
    return outputs[..., getattr(model.config, "reward_heads", 1) :].cpu() * scales[:, 1] + scales[:, 0]


def outputs(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """All outputs (B, N) for token sequences (prompt, answer, EOS), each read at its last token by length."""
    pad = model.config.pad_token_id or 0  # any id does: padding comes after the token that is read
    ids, is_token = right_pad(sequences, pad)  # (B, T)
    ids, is_token = ids.to(model.device), is_token.to(model.device)
    states = model.base_model(input_ids=ids, attention_mask=is_token.long(), use_cache=False).last_hidden_state
    last = is_token.sum(1) - 1  # (B,)
    row = torch.arange(len(ids), device=ids.device)
    return head_outputs(model, states[row, last])


def rewards(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Raw rewards (B,) of token sequences: the mean of the heads."""
    return heads_of(model, outputs(model, sequences)).mean(-1)


@torch.no_grad()
def raw_outputs(model: Any, sequences: Sequence[Sequence[int]], *, batch_size: int) -> Tensor:
    """All outputs (B, N) in the order of `sequences`, from batches of like length, on the CPU."""
    raw = torch.empty(len(sequences), head(model).out_features)
    lengths = [len(sequence) for sequence in sequences]
    tokens = scoring_tokens(model, logits=False)
    for batch in batches_by_length(lengths, batch_size, longest_first=True, tokens=tokens):
        raw[batch] = outputs(model, [sequences[row] for row in batch]).cpu()
    return raw


def raw_scores(model: Any, sequences: Sequence[Sequence[int]], *, batch_size: int) -> list[float]:
    """Raw rewards in the order of `sequences`."""
    by_head = heads_of(model, raw_outputs(model, sequences, batch_size=batch_size))  # (B, heads)
    raw: list[float] = by_head.mean(-1).tolist()
    return raw


def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    disagreement_weight: float = 0.0,
) -> list[float]:
    """Normalised rewards of answers (ids with EOS) to prompts (ids): mean 0, std 1 on reference answers.

    With a `disagreement_weight`, of an ensemble: the mean of its heads less this many standard deviations (population)
    over them, each head brought to mean 0 on reference answers, so that what people never ranked is worth less.
    Coste et al. (arXiv 2310.02743, section 3) take the variance; a standard deviation has the unit of the reward.

    An answer that was cut before its EOS is scored at its last token; the caller decides what that is worth.
    """
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    mean, std = model.config.reward_mean, model.config.reward_std
    if disagreement_weight:
        by_head = heads_of(model, raw_outputs(model, sequences, batch_size=batch_size))
        by_head = (by_head - torch.tensor(model.config.reward_head_means)) / std
        scores: list[float] = (by_head.mean(1) - disagreement_weight * by_head.std(1, correction=0)).tolist()
        return scores
    return [(raw - mean) / std for raw in raw_scores(model, sequences, batch_size=batch_size)]


def normalise(model: Any, reference: Tensor) -> None:
    """Keep mean and (population) std of reference answers' raw rewards (B, heads), and of an ensemble the mean of
    every head. Problem if they are constant."""
    if reference.shape[1] > 1:
        model.config.reward_head_means = reference.double().mean(0).tolist()
    raw = reference.mean(-1).double()
    std = float(raw.std(correction=0))
    if not math.isfinite(std) or std < 1e-6:
        raise Problem(
            f"the reward model gives every answer {float(raw.mean()):.4g}: it learned nothing; "
            "check the rankings, raise reward.training.learning_rate or reward.training.epochs"
        )
    model.config.reward_mean, model.config.reward_std = float(raw.mean()), std


def load_reward(path: str | Path) -> Any:
    """The reward model of a folder, in eval mode on `device()`. Problem when damaged, or no reward model."""
    from transformers import AutoModelForSequenceClassification

    def refuse_others(config: Any) -> None:
        if not hasattr(config, "reward_mean"):
            raise Problem(f"{path} is not a reward model of this pipeline (no reward_mean); run reward again")

    return load_model(path, AutoModelForSequenceClassification, configure=refuse_others)
