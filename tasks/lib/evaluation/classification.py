"""What a classifier or a regression is worth on held-out rows, beside a guess that reads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tasks.lib.evaluation.intervals import Interval, mean_interval


def classification_figures(
    labels: Sequence[str], predicted: Sequence[str], majority: str, *, seed: int
) -> dict[str, Any]:
    """Flat figures of `predicted` against `labels`, both (N,); `majority` is what a blind guess says.

    `balanced_accuracy` is the mean recall of the labels that occur. Any constant guess has 1 / their number, and so
    has a coin: `chance`. Macro-F1 is over the labels that occur or were predicted.
    """
    truth, said = np.array(labels), np.array(predicted)
    right = truth == said
    counts, guesses, hits = Counter(labels), Counter(predicted), Counter(truth[right].tolist())
    names = sorted({*counts, *guesses})
    f1 = {name: 2 * hits[name] / (counts[name] + guesses[name]) for name in names}
    recall = {name: hits[name] / counts[name] for name in sorted(counts)}
    return {
        "heldout_rows": len(labels),
        **_spread("accuracy", mean_interval(right, seed=seed, bounds=(0.0, 1.0))),
        "majority_accuracy": counts[majority] / len(labels),
        "balanced_accuracy": float(np.mean([*recall.values()])),
        "chance": 1 / len(counts),
        "macro_f1": float(np.mean([f1[name] for name in names])),
        "majority_macro_f1": 2 * counts[majority] / (counts[majority] + len(labels)) / len({*counts, majority}),
        **{f"f1.{name}": f1[name] for name in names},
        **{f"recall.{name}": share for name, share in recall.items()},
        **{f"confusion.{a}.{b}": n for (a, b), n in sorted(Counter(zip(labels, predicted, strict=True)).items())},
    }


def regression_figures(
    targets: Sequence[float], predicted: Sequence[float], train: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Flat figures of `predicted` against `targets`, both (N,). The blind guess is the median of `train`,
    which has the least mean absolute error of all constants; `mae_gain` is what the model is better by, paired."""
    truth, errors = np.array(targets), np.abs(np.array(targets) - np.array(predicted))
    blind = np.abs(truth - median(train))
    return {
        "heldout_rows": len(targets),
        **_spread("mae", mean_interval(errors, seed=seed)),
        "median_mae": float(blind.mean()),
        **_spread("mae_gain", mean_interval(blind - errors, seed=seed)),
        "spearman": spearman(targets, predicted),
    }


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two (N,), ties at their mean rank; 0 where one of them is constant."""
    a, b = _ranks(x), _ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def _ranks(values: ArrayLike) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _spread(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
