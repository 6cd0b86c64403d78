"""Attributes that a reward model predicts along with the reward: regression on ratings of single answers (SteerLM,
arXiv 2310.05344; HelpSteer2, arXiv 2406.08673), on outputs of the same body."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import Messages
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.reward.reward_model import outputs


@dataclass(frozen=True)
class Rated:
    """One rated answer: ids of prompt, answer and EOS, and a value per attribute (NaN: not rated by it)."""

    sequence: list[int]
    values: list[float]


def rated_answers(rows: Sequence[Row], names: Sequence[str], tokenizer: Any, room: int | None) -> list[Rated]:
    """The answers of rows of the schema RATING, annotators averaged; what is longer than `room` is left out."""
    prompt_of: dict[tuple[str, str], Messages] = {}  # by (prompt_key, answer)
    ratings_of: dict[tuple[str, str], dict[str, list[float]]] = {}  # the same, then by attribute
    for row in rows:
        if row["attribute"] in names:
            key = prompt_key(row["prompt"]), row["answer"]
            prompt_of[key] = row["prompt"]
            ratings_of.setdefault(key, {}).setdefault(row["attribute"], []).append(row["value"])
    rated = []
    for key in sorted(ratings_of):
        _, answer = key
        sequence = prompt_ids(tokenizer, prompt_of[key]) + answer_ids(tokenizer, answer)
        if not room or len(sequence) <= room:
            values = [fmean(ratings_of[key].get(name, [math.nan])) for name in names]
            rated.append(Rated(sequence, values))
    return rated


def sequences_of(rated: Sequence[Rated]) -> list[list[int]]:
    return [answer.sequence for answer in rated]


def values_of(rated: Sequence[Rated]) -> Tensor:
    """What the answers were given, (B, A) in double precision; NaN where an attribute does not rate an answer."""
    return torch.tensor([answer.values for answer in rated], dtype=torch.float64)


def attribute_figures(names: Sequence[str], predicted: Tensor, given: Tensor) -> dict[str, float]:
    """Held-out figures per attribute from what the model predicts and what was given (NaN: nothing), both (B, A).

    correlation: Pearson's r; rmse: in the attribute's own units; spread: the error of always predicting the mean.
    """
    figures: dict[str, float] = {}
    for place, name in enumerate(names):
        is_rated = ~given[:, place].isnan()
        x, y = predicted[is_rated, place].double(), given[is_rated, place].double()
        if len(y):
            figures[f"attribute_{name}_rmse"] = (x - y).square().mean().sqrt().item()
            figures[f"attribute_{name}_spread"] = y.std(correction=0).item()
        if len(y) > 1 and x.std() > 0 and y.std() > 0:
            figures[f"attribute_{name}_correlation"] = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
    return figures


def attribute_loss(model: Any, rated: Sequence[Rated], total: int) -> Tensor:
    """Squared error of the attributes' outputs against their standardised values, over `total`: how many values the
    whole step has, of which these answers may be a part."""
    predicted = outputs(model, sequences_of(rated))[:, model.config.reward_heads :]  # (B, A)
    scales = predicted.new_tensor(model.config.reward_attribute_scales)  # (A, 2): mean and standard deviation
    given = (values_of(rated).to(predicted) - scales[:, 0]) / scales[:, 1]
    is_rated = ~given.isnan()
    return (predicted - given.nan_to_num()).square()[is_rated].sum() / total


def set_scales(model: Any, rated: Sequence[Rated]) -> None:
    """Keep the mean and standard deviation of each attribute in the model's configuration."""
    scales = []
    for column in values_of(rated).T:
        given = column[~column.isnan()]
        scales.append([given.mean().item(), max(given.std(correction=0).item(), 1e-6)])  # not 0: it divides
    model.config.reward_attribute_scales = scales


def rated_batches(rated: Sequence[Rated], epochs: int, steps: int, seed: int) -> list[list[Rated]]:
    """All epochs over the rated answers, spread evenly over the steps."""
    order: list[Rated] = []
    for epoch in range(epochs):
        shuffled = list(rated)
        random.Random(f"{seed}/rated/{epoch}").shuffle(shuffled)
        order += shuffled
    batches = []
    for step in range(steps):
        start, end = len(order) * step // steps, len(order) * (step + 1) // steps
        batches.append(order[start:end])
    return batches
