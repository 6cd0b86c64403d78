"""How well rewards predict what annotators prefer: accuracy on pairs, against baselines, and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from tasks.lib.annotation.agreement import Verdicts, agreement_with_others, majority
from tasks.lib.reward.ranking_loss import pair_losses
from tasks.lib.settings.ties import Ties

Rewards = Mapping[tuple[str, str], float]  # (prompt id, answer) -> raw reward


@dataclass(frozen=True)
class Judged:
    """A pair that somebody ordered: reward and length of the preferred answer minus those of the other."""

    prompt_key: str
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
        "best_possible": best_possible(votes),
        "accuracy_longer": sum(_hit(p.longer_by) for p in single) / len(single) if single else None,
        "accuracy_longer_is_worse": accuracy([p for p in single if p.longer_by < 0]),
        **{f"accuracy_margin_{n}": share for n, (_, share) in enumerate(by_margin(single), 1)},
    }
    for name in sorted({pair.annotator for pair in single}):
        found[f"accuracy_{name}"] = accuracy([pair for pair in single if pair.annotator == name])
    return {name: value for name, value in found.items() if value is not None}


def best_possible(votes: Verdicts) -> float | None:
    """What the best ordering of the answers would get on these very verdicts: their majority, pair by pair."""
    counts = [(list(said.values()).count(1), list(said.values()).count(-1)) for said in votes.values()]
    total = sum(map(sum, counts))
    return sum(map(max, counts)) / total if total else None


def by_source(pairs: Sequence[Judged], source_of: Mapping[tuple[str, str], str]) -> dict[str, float]:
    """`accuracy_source_<name>`: accuracy on the pairs of each source, by prompt id and annotator."""
    parts: dict[str, list[Judged]] = {}
    for pair in pairs:
        parts.setdefault(source_of[pair.prompt_key, pair.annotator], []).append(pair)
    return {f"accuracy_source_{'_'.join(name.split())}": accuracy(parts[name]) or 0.0 for name in sorted(parts)}


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


def temperature(margins: Sequence[float]) -> float:
    """The T that makes sigmoid(margin / T) the likeliest probability of the preferred answer.

    `margins`: raw reward of the preferred answer minus that of the other. Temperature scaling of Guo et al.
    (arXiv 1706.04599), section 4.2: one parameter, so that no order of answers changes. The derivative of the
    loss by 1/T is monotone, so halving the interval finds its root; T stays within 1/50 and 50.
    """
    d = torch.tensor(margins, dtype=torch.float64)
    low, high = -math.log(50), math.log(50)  # of log(1/T)
    for _ in range(50):
        middle = (low + high) / 2
        slope = float((d * torch.sigmoid(-d * math.exp(middle))).sum())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def scaled_confidence(pairs: Sequence[Judged]) -> list[float]:
    """Confidence after temperature scaling, each half of the prompts scaled as the other half says."""
    is_even = [int(pair.prompt_key, 16) % 2 == 0 for pair in pairs]
    found = [0.0] * len(pairs)
    for half in (True, False):
        others = [p.margin for p, even in zip(pairs, is_even, strict=True) if even is not half]
        t = temperature(others) if others else 1.0
        for place, pair in enumerate(pairs):
            if is_even[place] is half:
                found[place] = 1 / (1 + math.exp(-min(abs(pair.margin) / t, 500.0)))
    return found


def score_figures(scores: Sequence[float], answers: Sequence[str]) -> dict[str, float]:
    """Where normalised rewards of held-out answers lie, and how they go with length (Pearson's r)."""
    values = torch.tensor(scores, dtype=torch.float64)
    lengths = torch.tensor([float(len(answer)) for answer in answers], dtype=torch.float64)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    found = {f"score_p{round(q * 100):02}": values.quantile(q).item() for q in shares}
    if len(scores) > 1 and values.std() > 0 and lengths.std() > 0:
        found["score_length_correlation"] = torch.corrcoef(torch.stack([values, lengths]))[0, 1].item()
    return found


def histogram(
    scores: Sequence[Sequence[float]], is_best: Sequence[Sequence[bool]], bins: int = 24
) -> list[dict[str, float]]:
    """Shares of the rewards of `best` answers and of the `others` in equal bins; scores by prompt."""
    parts: dict[str, list[float]] = {"best": [], "others": []}
    for of_prompt, best in zip(scores, is_best, strict=True):
        for reward, first in zip(of_prompt, best, strict=True):
            parts["best" if first else "others"].append(reward)
    low, high = min(map(min, scores)), max(map(max, scores))
    width = (high - low) / bins or 1.0
    rows = [{"reward": low + (place + 0.5) * width, "best": 0.0, "others": 0.0} for place in range(bins)]
    for name, values in parts.items():
        for value in values:
            rows[min(int((value - low) / width), bins - 1)][name] += 1 / len(values)
    return rows


def reliability_bins(confidence: Sequence[float], hits: Sequence[float], bins: int = 10) -> list[dict[str, float]]:
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
