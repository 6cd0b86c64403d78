"""Figures of an evaluation as means over its rows or trained tokens, whatever the size of its batches is.

TRL takes the mean over batches, of which the last is smaller and each has another number of trained tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.lib.models.chat import IGNORED
from tasks.lib.training.distributed import combined

LOSS = "loss"


class EvaluationMeans:
    """Sums over the batches of one evaluation."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, loss: float, figures: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> None:
        """A batch of `sizes` with its loss in this process, and TRL's `figures` of all processes: the last of each list
        is that of this batch, unless its size is 0. Names end with the side of the answers they are of, if any."""
        whole = combined({name: float(size) for name, size in sizes.items()})
        self._add(LOSS, loss, sizes["all"])
        for name, values in figures.items():
            self._add(name, values[-1], whole.get(name.rpartition("/")[2], whole["all"]))

    def _add(self, name: str, value: float, weight: float) -> None:
        if weight:
            self.sums[name] += weight * value
            self.weights[name] += weight

    def loss(self) -> float:
        """The mean loss over the rows or tokens of all processes."""
        total = combined({"sum": self.sums[LOSS], "weight": self.weights[LOSS]})
        return total["sum"] / total["weight"]

    def figures(self) -> dict[str, list[float]]:
        """TRL's figures, each as the list of its one mean."""
        means = {name: self.sums[name] / weight for name, weight in self.weights.items() if name != LOSS}
        if "rewards/margins" in means:  # of KTO the difference of two means over different answers
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return {name: [mean] for name, mean in means.items()}


def sizes_of(batch: Mapping[str, Any]) -> dict[str, int]:
    """How many trained tokens, pairs or answers a batch of TRL's collators has; of answers, how many of each side."""
    if "labels" in batch:
        return {"all": int((batch["labels"][:, 1:] != IGNORED).sum())}
    if "label" in batch:
        good = int(batch["label"].sum())
        return {"all": len(batch["label"]), "chosen": good, "rejected": len(batch["label"]) - good}
    return {"all": len(batch["completion_mask"]) // 2}
