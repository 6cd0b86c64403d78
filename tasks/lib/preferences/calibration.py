"""How well rewards predict what annotators prefer: accuracy on pairs, against baselines, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tasks.lib.preferences.agreement import Verdicts, majority
from tasks.lib.preferences.ranking_loss import Ties, pair_losses


@dataclass(frozen=True)
class Judged:
    """A pair that somebody ordered: reward and length of the preferred answer minus those of the other."""

    prompt_id: str
    annotator: str
    margin: float
    longer_by: int  # characters

    @property
    def hit(self) -> float:
        """1 if the rewards order the pair as the annotator did, 0 if not, a half if they are equal."""
        return _hit(self.margin)


def _hit(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def judged_pairs(
    found: Verdicts, reward_of: Mapping[tuple[str, str], float], panel: bool = False
) -> list[Judged]:
    """The ordered pairs of all annotators, or with `panel` those of their majority. Ties are nobody's pair."""
    pairs = []
    for (prompt, a, b), votes in found.items():
        for annotator, vote in {"panel": majority(votes.values())}.items() if panel else votes.items():
            if vote:
                margin = vote * (reward_of[prompt, a] - reward_of[prompt, b])
                pairs.append(Judged(prompt, annotator, margin, vote * (len(a) - len(b))))
    return pairs


def accuracy(pairs: Sequence[Judged]) -> float | None:
    """The share of pairs ordered right; None of no pairs."""
    return sum(pair.hit for pair in pairs) / len(pairs) if pairs else None


def length_accuracy(pairs: Sequence[Judged]) -> float | None:
    """The accuracy of "the longer answer is better"."""
    return sum(_hit(pair.longer_by) for pair in pairs) / len(pairs) if pairs else None


def by_margin(pairs: Sequence[Judged], buckets: int = 4) -> list[tuple[float, float]]:
    """(least margin, accuracy) of as many pairs each, from unsure to sure: a good model errs where it is unsure."""
    order = sorted(pairs, key=lambda pair: abs(pair.margin))
    cuts = [len(order) * bucket // buckets for bucket in range(buckets + 1)]
    parts = [order[start:end] for start, end in zip(cuts, cuts[1:], strict=False) if end > start]
    return [(abs(part[0].margin), sum(pair.hit for pair in part) / len(part)) for part in parts]


def preference(ties: Ties, tie_parameter: float) -> Callable[[Sequence[float]], list[float]]:
    """Margins -> P(the annotator's order | no tie), under the likelihood that the model was trained with."""

    def probabilities(margins: Sequence[float]) -> list[float]:
        d = torch.tensor(margins, dtype=torch.float64)
        no_tie = torch.zeros_like(d, dtype=torch.bool)
        win, loss = (-pair_losses(x, no_tie, ties, tie_parameter) for x in (d, -d))
        return torch.sigmoid(win - loss).tolist()

    return probabilities


def reliability_bins(
    confidence: Sequence[float], hits: Sequence[float], bins: int = 10
) -> list[dict[str, float]]:
    """Equal bins of confidence 0.5 to 1 with their mean confidence, accuracy and count; empty bins are left out.

    `confidence`: the probability of the answer that the rewards prefer; `hits`: 1 where the annotator agrees.
    """
    parts: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for sure, hit in zip(confidence, hits, strict=True):
        parts[min(int((sure - 0.5) * 2 * bins), bins - 1)].append((sure, hit))
    return [
        {
            "confidence": sum(c for c, _ in part) / len(part),
            "accuracy": sum(h for _, h in part) / len(part),
            "count": len(part),
        }
        for part in parts
        if part
    ]


def calibration_error(rows: Sequence[Mapping[str, float]]) -> float:
    """Expected calibration error: mean |accuracy - confidence| over bins, by count (Naeini et al. 2015)."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / total
