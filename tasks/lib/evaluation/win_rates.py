"""Win rates: how often a judge prefers one model's answers to another's.

A judge says, of a label and two answers in the order shown, how much it prefers the first: 1, 0.5 (tie) or 0,
or a share of votes between. It is asked in both orders and the two verdicts are averaged, so that a judge who
favours a position gains nothing by it (Zheng et al. 2023, arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from tasks.lib.evaluation.judge import Panel

Judge = Callable[[str, str, str], float]


def wins(judge: Judge, labels: Sequence[str], mine: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """Per row (N,) how far the judge prefers `mine`: 1 a win in both orders, 0.5 a tie, 0 a loss in both."""
    return np.array(
        [
            0.5 * (judge(label, first, second) + 1.0 - judge(label, second, first))
            for label, first, second in zip(labels, mine, theirs, strict=True)
        ]
    )


def wins_by_score(mine: ArrayLike, theirs: ArrayLike, tie_below: float = 0.0) -> np.ndarray:
    """Per row (N,) 1, 0.5 or 0 by a score of each answer. Closer than `tie_below`, or equal, is a tie."""
    difference = np.asarray(mine, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    tied = (difference == 0.0) | (np.abs(difference) < tie_below)
    return np.where(tied, 0.5, (difference > 0.0).astype(np.float64))


def gold_judge(panel: Panel) -> Judge:
    """The panel's true utility, without noise."""

    def judge(label: str, first: str, second: str) -> float:
        return float(wins_by_score(panel.utility(label, first), panel.utility(label, second), panel.tie_below))

    return judge


def panel_judge(panel: Panel, seed: int) -> Judge:
    """The panel as it would vote: every annotator sees its own utility plus new noise at each question."""
    generator = np.random.default_rng(seed)
    noise = np.array([annotator.noise for annotator in panel.annotators])

    def seen(label: str, text: str) -> np.ndarray:
        utilities = [panel.utility_to(annotator, label, text) for annotator in panel.annotators]
        return np.array(utilities) + noise * generator.normal(size=noise.size)

    def judge(label: str, first: str, second: str) -> float:
        return float(wins_by_score(seen(label, first), seen(label, second), panel.tie_below).mean())

    return judge
