"""Win rates: how often a judge prefers one model's answers to another's.

A judge says how much it prefers the first of two answers to the second: 1, 0.5 (a tie) or 0, or a fraction of votes in
between. It is asked in both orders and the two verdicts are averaged, so that favouring a position has no effect
(Zheng et al. 2023, arXiv 2306.05685, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tasks.lib.evaluation.panel import Panel

Row = Mapping[str, Any]
Judge = Callable[[Row, str, str], float]  # (row, first answer, second answer) -> preference for the first


def wins(judge: Judge, rows: Sequence[Row], answers: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """Per row (N,) how far the judge prefers the answer to the other: 1 a win in both orders, 0.5 a tie, 0 a loss."""
    shares: list[float] = []
    for row, answer, other in zip(rows, answers, others, strict=True):
        for_answer = judge(row, answer, other)
        for_other = judge(row, other, answer)
        shares.append(0.5 * (for_answer + 1.0 - for_other))
    return np.array(shares)


def wins_by_score(scores: ArrayLike, others: ArrayLike, tie_below: float = 0.0) -> np.ndarray:
    """Per row (N,) 1, 0.5 or 0 by a score of each answer. Closer than `tie_below`, or equal, is a tie."""
    difference = np.asarray(scores, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    tied = (difference == 0.0) | (np.abs(difference) < tie_below)
    return np.where(tied, 0.5, (difference > 0.0).astype(np.float64))


def gold_judge(panel: Panel) -> Judge:
    """The panel's true utility, without noise."""

    def judge(row: Row, first: str, second: str) -> float:
        return float(wins_by_score(panel.utility(row, first), panel.utility(row, second), panel.tie_below))

    return judge


def panel_judge(panel: Panel, seed: int) -> Judge:
    """The panel as it would vote: every annotator perceives its own utility plus new noise at each question."""
    generator = np.random.default_rng(seed)
    noise = np.array([annotator.noise for annotator in panel.annotators])

    def perceived(row: Row, answer: str) -> np.ndarray:
        """What the answer is worth to each of the annotators."""
        utilities = [panel.utility_to(annotator, row, answer) for annotator in panel.annotators]
        return np.array(utilities) + noise * generator.normal(size=noise.size)

    def judge(row: Row, first: str, second: str) -> float:
        return float(wins_by_score(perceived(row, first), perceived(row, second), panel.tie_below).mean())

    return judge
