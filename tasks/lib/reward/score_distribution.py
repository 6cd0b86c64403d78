"""Where the normalised rewards of held-out answers lie, for the report and its picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tasks.lib.reward.groups import Group

PERCENTILES = (5, 25, 50, 75, 95)


def score_figures(scores: Sequence[float], answers: Sequence[str]) -> dict[str, float]:
    """Percentiles of the rewards, and how they go with the length of the answers (Pearson's r)."""
    values = torch.tensor(scores, dtype=torch.float64)
    lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.float64)
    figures = {}
    for percent in PERCENTILES:
        figures[f"score_p{percent:02}"] = values.quantile(percent / 100).item()
    if len(scores) > 1 and values.std() > 0 and lengths.std() > 0:
        figures["score_length_correlation"] = torch.corrcoef(torch.stack([values, lengths]))[0, 1].item()
    return figures


def ranked_first(group: Group) -> list[bool]:
    """Per answer, whether an annotator ranked it first."""
    return [0 in ranks for ranks in zip(*group.ranks, strict=True)]


def histogram(
    scores: Sequence[Sequence[float]], is_best: Sequence[Sequence[bool]], bins: int = 24
) -> list[dict[str, float]]:
    """Shares of the rewards of `best` answers and of the `others` in equal bins; scores and is_best by prompt."""
    rewards: dict[str, list[float]] = {"best": [], "others": []}
    for of_prompt, best in zip(scores, is_best, strict=True):
        for reward, first in zip(of_prompt, best, strict=True):
            rewards["best" if first else "others"].append(reward)
    everything = rewards["best"] + rewards["others"]
    low, high = min(everything), max(everything)
    width = (high - low) / bins or 1.0
    rows = [{"reward": low + (place + 0.5) * width, "best": 0.0, "others": 0.0} for place in range(bins)]
    for name, values in rewards.items():
        for value in values:
            rows[min(int((value - low) / width), bins - 1)][name] += 1 / len(values)
    return rows
