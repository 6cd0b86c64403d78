"""How sure a reward model may be of the answer that it prefers, and how often it is right when it is that sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tasks.lib.reward.accuracy import OrderedPair
from tasks.lib.reward.ranking_loss import pair_losses
from tasks.lib.settings.ties import Ties


def confidence(margins: Sequence[float], ties: Ties, tie_parameter: float) -> list[float]:
    """P(the answer that the rewards prefer is preferred | no tie), under the likelihood trained with."""
    difference = torch.tensor(margins, dtype=torch.float64).abs()
    no_tie = torch.zeros_like(difference, dtype=torch.bool)
    log_win = -pair_losses(difference, no_tie, ties, tie_parameter)
    log_loss = -pair_losses(-difference, no_tie, ties, tie_parameter)
    return torch.sigmoid(log_win - log_loss).tolist()


def temperature(margins: Sequence[float]) -> float:
    """The T that makes sigmoid(margin / T) the likeliest probability of the preferred answer.

    `margins`: raw reward of the preferred answer minus that of the other. Temperature scaling of Guo et al.
    (arXiv 1706.04599), section 4.2: one parameter, so that no order of answers changes. The derivative of the
    loss by 1/T is monotone, so halving the interval finds its root; T stays within 1/50 and 50.
    """
    margin = torch.tensor(margins, dtype=torch.float64)
    low, high = -math.log(50), math.log(50)  # of log(1/T)
    for _ in range(50):
        middle = (low + high) / 2
        slope = float((margin * torch.sigmoid(-margin * math.exp(middle))).sum())  # of the log-likelihood by 1/T
        if slope > 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def scaled_confidence(pairs: Sequence[OrderedPair]) -> list[float]:
    """Confidence after temperature scaling; the temperature of each half of the prompts comes from the other half."""
    margins: tuple[list[float], list[float]] = ([], [])  # of the even and of the odd prompts
    for pair in pairs:
        margins[_half(pair)].append(pair.margin)
    temperatures = [temperature(of_half) if of_half else 1.0 for of_half in margins]
    confidences = []
    for pair in pairs:
        of_other_half = temperatures[1 - _half(pair)]
        log_odds = min(abs(pair.margin) / of_other_half, 500.0)
        confidences.append(1 / (1 + math.exp(-log_odds)))
    return confidences


def _half(pair: OrderedPair) -> int:
    """0 or 1: in which half of the prompts the pair is."""
    return int(pair.prompt_key, 16) % 2


def reliability_bins(confidence: Sequence[float], hits: Sequence[float], bins: int = 10) -> list[dict[str, float]]:
    """Equal bins of confidence 0.5 to 1: mean confidence, accuracy, count. Empty bins are left out.

    `confidence`: the probability of the answer that the rewards prefer; `hits`: 1 where the annotator agrees.
    """
    members: dict[int, list[tuple[float, float]]] = {}  # (confidence, hit) by the number of their bin
    for sure, hit in zip(confidence, hits, strict=True):
        members.setdefault(min(int((sure - 0.5) * 2 * bins), bins - 1), []).append((sure, hit))
    rows = []
    for number in sorted(members):
        confidences, of_bin = zip(*members[number], strict=True)
        count = len(of_bin)
        rows.append({"confidence": sum(confidences) / count, "accuracy": sum(of_bin) / count, "count": count})
    return rows


def calibration_error(rows: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins, by count (Naeini et al. 2015)."""
    error = count = 0.0
    for row in rows:
        error += row["count"] * abs(row["accuracy"] - row["confidence"])
        count += row["count"]
    return error / count
