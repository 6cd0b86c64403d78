"""The reward model: the policy's body with a linear head that reads the last token of an answer.

Stored as a transformers AutoModelForSequenceClassification folder with an output per head: the reward is the
mean of the first `reward_heads` (1 where config.json does not say), an ensemble on one body (ensemble.py). The
outputs behind them are `reward_attributes`, to be scaled by `reward_attribute_scales`, (mean, std) of each.
config.json also holds `reward_mean` and `reward_std`, the raw rewards of reference answers: `score` gives
(raw - mean) / std.
transformers' own forward of such a model looks for the last token by pad id, which is wrong where the pad
token is the EOS; here lengths say where it stands.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.prompts import prompt_key
from tasks.lib.importers.rankings import Messages
from tasks.lib.models.batches import batches_by_length, right_pad
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.models.loading import load_model
from tasks.lib.stage import Problem


def from_policy(policy: Any, seed: int, heads: int = 1, attributes: Sequence[str] = ()) -> Any:
    """A reward model on the policy's body; heads N(0, 1/sqrt(d + 1)) without bias (arXiv 2009.01325).

    Problem when the architecture has no sequence classification in transformers.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(policy.config)
    config.num_labels = heads + len(attributes)
    if config.num_labels > 1:
        config.reward_heads, config.reward_attributes = heads, [*attributes]
    try:
        model = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        raise Problem(
            f"{config.model_type} has no sequence classification in transformers; choose another base"
        ) from None
    model.base_model.load_state_dict(policy.base_model.state_dict())
    weight = head(model).weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1] + 1))
    return model.eval().to(policy.device)


def head(model: Any) -> Any:
    """The linear layer (outputs, d) from a hidden state to rewards; Problem when the model has none."""
    layer = getattr(model, "score", None)
    if not isinstance(layer, torch.nn.Linear) or layer.bias is not None:
        raise Problem(f"{type(model).__name__} has no plain linear head named score; choose another base model")
    return layer


def room_of(model: Any) -> int | None:
    """The most tokens that the model can read at once; None where its configuration does not say."""
    return getattr(model.config, "max_position_embeddings", None)


def heads_of(model: Any, outputs: Tensor) -> Tensor:
    """The raw rewards by head (..., heads) among all outputs of the model."""
    return outputs[..., : getattr(model.config, "reward_heads", 1)]


def attributes_of(model: Any, outputs: Tensor) -> Tensor:
    """What the model says of the attributes (..., A), in their own units, among all its outputs."""
    scales = torch.tensor(getattr(model.config, "reward_attribute_scales", [])).reshape(-1, 2)
    return outputs[..., getattr(model.config, "reward_heads", 1) :].cpu() * scales[:, 1] + scales[:, 0]


def outputs(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """All outputs (B, N) for token sequences (prompt, answer, EOS), each read at its last token by length."""
    pad = model.config.pad_token_id or 0  # any id does: padding stands after the token that is read
    ids, is_token = (x.to(model.device) for x in right_pad(sequences, pad))
    states = model.base_model(input_ids=ids, attention_mask=is_token.long(), use_cache=False).last_hidden_state
    last = is_token.sum(1) - 1
    return head(model)(states[torch.arange(len(ids), device=ids.device), last]).float()


def rewards(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Raw rewards (B,) of token sequences: the mean of the heads."""
    return heads_of(model, outputs(model, sequences)).mean(-1)


@torch.no_grad()
def raw_outputs(model: Any, sequences: Sequence[Sequence[int]], *, batch_size: int) -> Tensor:
    """All outputs (B, N) in the order of `sequences`, from batches of like length, on the CPU."""
    found = torch.empty(len(sequences), head(model).out_features)
    for batch in batches_by_length([len(sequence) for sequence in sequences], batch_size, longest_first=True):
        found[batch] = outputs(model, [sequences[i] for i in batch]).cpu()
    return found


def raw_scores(model: Any, sequences: Sequence[Sequence[int]], *, batch_size: int) -> list[float]:
    """Raw rewards in the order of `sequences`."""
    found = heads_of(model, raw_outputs(model, sequences, batch_size=batch_size)).mean(-1)
    return [float(reward) for reward in found.tolist()]


def score(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    disagreement_weight: float = 0.0,
) -> list[float]:
    """Normalised rewards of answers (ids with EOS) to prompts (ids): mean 0, std 1 on reference answers.

    With a `disagreement_weight`, of an ensemble: the mean of its heads less so many standard deviations (population)
    over them, each head brought to mean 0 on reference answers, so that what people never ranked is worth less.
    Coste et al. (arXiv 2310.02743, section 3) take the variance; a standard deviation has the unit of the reward.

    An answer that was cut before its EOS is scored at its last token: what that is worth, the caller says.
    """
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    mean, std = model.config.reward_mean, model.config.reward_std
    if disagreement_weight:
        by_head = heads_of(model, raw_outputs(model, sequences, batch_size=batch_size))
        by_head = (by_head - torch.tensor(model.config.reward_head_means)) / std
        found = by_head.mean(1) - disagreement_weight * by_head.std(1, correction=0)
        return [float(each) for each in found.tolist()]
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


# --- rankings of one prompt ---


@dataclass(frozen=True)
class Group:
    """One prompt with all its answers, each once, and every annotator's ranks of them."""

    prompt_key: str
    prompt: Messages
    answers: list[str] = field(default_factory=list)
    ranks: list[list[int]] = field(default_factory=list)  # a row per ranking; -1: that annotator did not see it
    rows: list[str] = field(default_factory=list)  # ids of the rankings
    annotators: list[str] = field(default_factory=list)  # of each ranking
    strengths: list[float] = field(default_factory=list)  # of each ranking, 0 to 1; 0 where none is given
    sequences: list[list[int]] = field(default_factory=list)  # ids per answer, once tokenized


def grouped(rankings: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Rankings by prompt, in order of prompt id, so that an answer is scored once however many rank it."""
    groups: dict[str, Group] = {}
    members: dict[str, list[Mapping[str, Any]]] = {}
    for ranking in rankings:
        key = prompt_key(ranking["prompt"])
        group = groups.setdefault(key, Group(key, ranking["prompt"]))
        group.answers.extend(answer for answer in ranking["answers"] if answer not in group.answers)
        members.setdefault(key, []).append(ranking)
    for key, group in groups.items():
        for ranking in members[key]:
            rank = dict(zip(ranking["answers"], ranking["ranks"], strict=True))
            group.ranks.append([rank.get(answer, -1) for answer in group.answers])
            group.rows.append(ranking["id"])
            group.annotators.append(ranking.get("annotator", ""))
            group.strengths.append(ranking.get("strength") or 0.0)
    return [groups[key] for key in sorted(groups)]


def tokenized(tokenizer: Any, groups: Sequence[Group], room: int | None) -> list[Group]:
    """The groups with the ids of prompt, answer and EOS per answer.

    A group with an answer of more than `room` tokens is left out: cut answers may be equal.
    """
    fitting = []
    for group in groups:
        start = prompt_ids(tokenizer, group.prompt)
        sequences = [[*start, *answer_ids(tokenizer, answer)] for answer in group.answers]
        if not room or max(map(len, sequences)) <= room:
            fitting.append(replace(group, sequences=sequences))
    return fitting


def group_heads(model: Any, groups: Sequence[Group], *, batch_size: int) -> list[Tensor]:
    """Raw rewards (K, heads) of the answers of every group, by head."""
    flat = [ids for group in groups for ids in group.sequences]
    found = heads_of(model, raw_outputs(model, flat, batch_size=batch_size))
    return list(found.split([len(group.sequences) for group in groups]))


def group_scores(model: Any, groups: Sequence[Group], *, batch_size: int) -> list[list[float]]:
    """Raw rewards of every answer of every group."""
    return [of_group.mean(-1).tolist() for of_group in group_heads(model, groups, batch_size=batch_size)]


def batch_ranks(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """(places, ranks), both (R, K): all rankings of some prompts, padded to the largest K.

    A place is the number of the answer among all answers of these prompts; padding has place 0 and rank -1.
    """
    width = max(len(group.answers) for group in groups)
    places, ranks, first = [], [], 0
    for group in groups:
        pad = width - len(group.answers)
        for row in group.ranks:
            places.append([*range(first, first + len(group.answers)), *[0] * pad])
            ranks.append([*row, *[-1] * pad])
        first += len(group.answers)
    return torch.tensor(places), torch.tensor(ranks)
