"""Attributes that a reward model predicts beside the reward: regression on ratings of single answers (SteerLM, arXiv
2310.05344; HelpSteer2, arXiv 2406.08673), on outputs of the same body."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.prompts import prompt_key
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.reward.reward_model import outputs

Row = dict[str, Any]


@dataclass(frozen=True)
class Rated:
    """One answer with what it was given: ids of prompt, answer and EOS, a value per attribute (NaN: none)."""

    sequence: list[int]
    values: list[float]


def rated_answers(rows: Sequence[Row], names: Sequence[str], tokenizer: Any, room: int | None) -> list[Rated]:
    """The answers of rows of the schema RATING, annotators averaged; what is longer than `room` is left out."""
    given: dict[tuple[str, str], dict[str, list[float]]] = {}
    prompts = {}
    for row in rows:
        if row["attribute"] in names:
            key = prompt_key(row["prompt"]), row["answer"]
            prompts[key] = row["prompt"]
            given.setdefault(key, {}).setdefault(row["attribute"], []).append(row["value"])
    found = []
    for key in sorted(given):
        sequence = [*prompt_ids(tokenizer, prompts[key]), *answer_ids(tokenizer, key[1])]
        if not room or len(sequence) <= room:
            values = [fmean(given[key].get(name, [float("nan")])) for name in names]
            found.append(Rated(sequence, values))
    return found


def attribute_figures(names: Sequence[str], said: torch.Tensor, given: torch.Tensor) -> dict[str, float]:
    """Held-out figures per attribute from what the model says and what was given, both (B, attributes).

    correlation: Pearson's r; rmse: in the attribute's own units; spread: the error of always saying the mean.
    """
    found: dict[str, float] = {}
    for place, name in enumerate(names):
        known = ~given[:, place].isnan()
        x, y = said[known, place].double(), given[known, place].double()
        if len(y):
            found[f"attribute_{name}_rmse"] = (x - y).square().mean().sqrt().item()
            found[f"attribute_{name}_spread"] = y.std(correction=0).item()
        if len(y) > 1 and x.std() > 0 and y.std() > 0:
            found[f"attribute_{name}_correlation"] = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
    return found


def attribute_loss(model: Any, rated: Sequence[Rated]) -> Tensor:
    """Mean squared error of the attributes' outputs against their standardised values, over what was rated."""
    said = outputs(model, [answer.sequence for answer in rated])[:, model.config.reward_heads :]
    scales = said.new_tensor(model.config.reward_attribute_scales)
    given = (said.new_tensor([answer.values for answer in rated]) - scales[:, 0]) / scales[:, 1]
    is_known = ~given.isnan()
    return (said - given.nan_to_num()).square()[is_known].mean()


def rated_batches(model: Any, rated: Sequence[Rated], epochs: int, steps: int, seed: int) -> list[list[Rated]]:
    """All epochs over the rated answers, spread evenly over the steps; keeps the attributes' scales in the model."""
    if not rated:
        return [[] for _ in range(steps)]
    values = torch.tensor([answer.values for answer in rated], dtype=torch.float64)
    scales = []
    for column in values.T:
        known = column[~column.isnan()]
        scales.append([known.mean().item(), max(known.std(correction=0).item(), 1e-6)])
    model.config.reward_attribute_scales = scales
    order: list[Rated] = []
    for epoch in range(epochs):
        shuffled = list(rated)
        random.Random(f"{seed}/rated/{epoch}").shuffle(shuffled)
        order += shuffled
    return [order[len(order) * step // steps : len(order) * (step + 1) // steps] for step in range(steps)]
