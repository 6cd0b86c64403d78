"""How well rewards predict what annotators prefer: accuracy on pairs, against baselines, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from tasks.lib.preferences.agreement import Verdicts, agreement_with_others, majority
from tasks.lib.preferences.ranking_loss import Ties, pair_losses

Rewards = Mapping[tuple[str, str], float]  # (prompt id, answer) -> raw reward


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


def judged_pairs(votes: Verdicts, reward_of: Rewards, panel: bool = False) -> list[Judged]:
    """The ordered pairs of all annotators, or with `panel` those of their majority. Ties are nobody's."""
    pairs = []
    for (prompt, a, b), by_annotator in votes.items():
        said = {"panel": majority(by_annotator.values())} if panel else by_annotator
        for annotator, vote in said.items():
            if vote:
                margin = vote * (reward_of[prompt, a] - reward_of[prompt, b])
                pairs.append(Judged(prompt, annotator, margin, vote * (len(a) - len(b))))
    return pairs


def accuracy(pairs: Sequence[Judged]) -> float | None:
    """The share of pairs ordered right; None of no pairs."""
    return sum(pair.hit for pair in pairs) / len(pairs) if pairs else None


def accuracies(votes: Verdicts, reward_of: Rewards) -> dict[str, float]:
    """Accuracy on pairs from every side; a figure that has no pairs is left out.

    accuracy_majority: against the annotators' majority; accuracy_unanimous: where at least two all agree;
    accuracy_<name>: against one annotator; accuracy_margin_1 to 4: from the least to the most certain quarter
    of pairs; noise_ceiling: what annotators reach against the majority of the others; accuracy_longer: of the
    rule "the longer answer is better"; accuracy_longer_is_worse: of the rewards where that rule is wrong.
    """
    single, ceiling = judged_pairs(votes, reward_of), agreement_with_others(votes)
    unanimous = {k: v for k, v in votes.items() if len(v) > 1 and abs(sum(v.values())) == len(v)}
    found = {
        "accuracy_majority": accuracy(judged_pairs(votes, reward_of, panel=True)),
        "accuracy_unanimous": accuracy(judged_pairs(unanimous, reward_of, panel=True)),
        "noise_ceiling": sum(share for share, _ in ceiling.values()) / len(ceiling) if ceiling else None,
        "accuracy_longer": sum(_hit(p.longer_by) for p in single) / len(single) if single else None,
        "accuracy_longer_is_worse": accuracy([p for p in single if p.longer_by < 0]),
        **{f"accuracy_margin_{n}": share for n, (_, share) in enumerate(by_margin(single), 1)},
    }
    for name in sorted({pair.annotator for pair in single}):
        found[f"accuracy_{name}"] = accuracy([pair for pair in single if pair.annotator == name])
    return {name: value for name, value in found.items() if value is not None}


def by_margin(pairs: Sequence[Judged], buckets: int = 4) -> list[tuple[float, float]]:
    """(least margin, accuracy) of equal parts of the pairs, from unsure to sure."""
    order = sorted(pairs, key=lambda pair: abs(pair.margin))
    cuts = [len(order) * bucket // buckets for bucket in range(buckets + 1)]
    parts = [order[start:end] for start, end in pairwise(cuts) if end > start]
    return [(abs(part[0].margin), sum(pair.hit for pair in part) / len(part)) for part in parts]


def confidence(margins: Sequence[float], ties: Ties, tie_parameter: float) -> list[float]:
    """P(the answer that the rewards prefer is preferred | no tie), under the likelihood trained with."""
    d = torch.tensor(margins, dtype=torch.float64).abs()
    no_tie = torch.zeros_like(d, dtype=torch.bool)
    win, loss = (-pair_losses(x, no_tie, ties, tie_parameter) for x in (d, -d))
    return torch.sigmoid(win - loss).tolist()


def reliability_bins(
    confidence: Sequence[float], hits: Sequence[float], bins: int = 10
) -> list[dict[str, float]]:
    """Equal bins of confidence 0.5 to 1: mean confidence, accuracy, count. Empty bins are left out.

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
