"""What a classifier or a regression is worth on held-out rows, next to a guess that reads nothing."""

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
    """Flat figures of `predicted` against `labels`, both (N,); `majority` is the label of a constant answer.

    `balanced_accuracy` is the mean recall of the labels that occur. Any constant answer has 1 / their number, and so
    has a coin: `chance`. Macro-F1 is over the labels that occur or were predicted.
    """
    is_right = np.array(labels) == np.array(predicted)
    counts, guesses = Counter(labels), Counter(predicted)
    confusion = Counter(zip(labels, predicted, strict=True))  # (label, prediction) -> rows
    f1: dict[str, float] = {}
    for name in sorted({*counts, *guesses}):
        f1[name] = 2 * confusion[name, name] / (counts[name] + guesses[name])
    recall: dict[str, float] = {}
    for name in sorted(counts):
        recall[name] = confusion[name, name] / counts[name]

    # a constant answer has hits for one label only; its F1 is 0 for the others
    majority_f1 = 2 * counts[majority] / (counts[majority] + len(labels))
    figures: dict[str, Any] = {
        "heldout_rows": len(labels),
        **_with_ends("accuracy", mean_interval(is_right, seed=seed, bounds=(0.0, 1.0))),
        "majority_accuracy": counts[majority] / len(labels),
        "balanced_accuracy": float(np.mean(list(recall.values()))),
        "chance": 1 / len(counts),
        "macro_f1": float(np.mean(list(f1.values()))),
        "majority_macro_f1": majority_f1 / len({*counts, majority}),
    }
    for name, value in f1.items():
        figures[f"f1.{name}"] = value
    for name, value in recall.items():
        figures[f"recall.{name}"] = value
    for (label, prediction), count in sorted(confusion.items()):
        figures[f"confusion.{label}.{prediction}"] = count
    return figures


def regression_figures(
    targets: Sequence[float], predicted: Sequence[float], train: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Flat figures of `predicted` against `targets`, both (N,).

    The constant answer is the median of the training rows' targets `train`: no constant has a smaller mean absolute
    error on them; `mae_gain` is what the model is better by, paired.
    """
    errors = np.abs(np.array(targets) - np.array(predicted))
    constant_errors = np.abs(np.array(targets) - median(train))
    return {
        "heldout_rows": len(targets),
        **_with_ends("mae", mean_interval(errors, seed=seed)),
        "median_mae": float(constant_errors.mean()),
        **_with_ends("mae_gain", mean_interval(constant_errors - errors, seed=seed)),
        "spearman": spearman(targets, predicted),
    }


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation of two (N,), ties at their mean rank; 0 where one of them is constant."""
    x_ranks, y_ranks = _ranks(x), _ranks(y)
    if np.ptp(x_ranks) == 0 or np.ptp(y_ranks) == 0:
        return 0.0
    return float(np.corrcoef(x_ranks, y_ranks)[0, 1])


def _ranks(values: ArrayLike) -> np.ndarray:
    """The rank of each value (N,) from 1; equal values have the mean of the ranks that they take together."""
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _with_ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
