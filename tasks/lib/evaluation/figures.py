"""From a value per row to figures per split: means, their bootstrap intervals, and what guessing would give.

A column is one model's metric, (N,) a value per row in the order of the rows, NaN where it does not apply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.lib.evaluation.intervals import Interval, mean_interval
from tasks.lib.evaluation.scores import best_constant, chance

Row = Mapping[str, Any]
Columns = dict[str, np.ndarray]  # metric -> column

TITLES = {  # the metrics, in the order of the tables
    "exact_match": "exact match",
    "score": "score",
    "rank_classification": "rank classification",
    "win_rate": "win rate, judge",
    "reward_win_rate": "win rate, reward model",
    "gold": "utility, gold",
    "reward": "reward model's score",
    "closing": "answers with closing",
    "ended": "answers ended by EOS",
    "tokens": "tokens per answer",
    "examples": "examples in the prompt",
    "kl": "KL, nats per answer",
    "exact_match_change": "change of exact match",
    "score_change": "change of the score",
}
SHARES = ("exact_match", "score", "rank_classification", "win_rate", "reward_win_rate", "closing", "ended")
CHANGES = {"exact_match": "exact_match_change", "score": "score_change"}  # metric -> its change against the reference
BOUNDS = {**dict.fromkeys(SHARES, (0.0, 1.0)), **dict.fromkeys(CHANGES.values(), (-1.0, 1.0))}
WITH_INTERVAL = (*SHARES[:5], "kl", *CHANGES.values())
CHANCE, MAJORITY = "chance", "majority"  # what needs no model: a guess, and the best constant answer


@dataclass(frozen=True)
class Figures:
    """Every model's figures on every split, and what a guess and the best constant answer give there."""

    models: list[str]
    sizes: dict[str, int]  # split -> rows
    values: dict[tuple[str, str, str], Interval]  # (model, split, metric)
    guesses: dict[tuple[str, str, str], float]  # (CHANCE or MAJORITY, split, metric)

    def flat(self) -> dict[str, Any]:
        """`rows.rows`, `rows.exact_match_chance`, `sft.rows.exact_match`, `sft.rows.exact_match_low`, ..."""
        flat: dict[str, Any] = {}
        for split, size in self.sizes.items():
            flat[f"{split}.rows"] = size
        for (kind, split, metric), value in self.guesses.items():
            flat[f"{split}.{metric}_{kind}"] = value
        for (model, split, metric), interval in self.values.items():
            for name, value in _numbers(metric, interval).items():
                flat[f"{model}.{split}.{name}"] = value
        return flat

    def bars(self) -> list[dict[str, Any]]:
        """One dict per split and model, as `plots.bars` takes them."""
        bars: dict[tuple[str, str], dict[str, Any]] = {}
        for split in self.sizes:
            for model in self.models:
                bars[split, model] = {"split": split, "model": model}
        for (model, split, metric), interval in self.values.items():
            bars[split, model] |= _numbers(metric, interval)
        for (kind, split, metric), value in self.guesses.items():
            for model in self.models:
                bars[split, model][f"{metric}_{kind}"] = value
        return list(bars.values())


def _numbers(metric: str, interval: Interval) -> dict[str, float]:
    """The mean, and for some metrics both ends of the interval, by the names that reports and plots know them by."""
    numbers = {metric: interval.mean}
    if metric in WITH_INTERVAL:
        numbers |= {f"{metric}_low": interval.low, f"{metric}_high": interval.high}
    return numbers


def figures_of(
    rows: Sequence[Row], columns: Mapping[str, Columns], reference: str, *, seed: int, draws: int
) -> Figures:
    """Means and bootstrap intervals of all models' columns on all splits.

    Renderings of one raw row are drawn together. Every model but `reference` also gets the CHANGES against the
    reference, row by row. A metric that applies to no row of a split is left out.
    """
    sizes: dict[str, int] = {}
    values: dict[tuple[str, str, str], Interval] = {}
    guesses: dict[tuple[str, str, str], float] = {}
    for split, places in places_by_split(rows).items():
        sizes[split] = len(places)
        for model, of_model in columns.items():
            if model != reference:
                of_model = of_model | _changes(of_model, columns[reference])
            for metric, interval in _intervals(rows, of_model, places, seed, draws).items():
                values[model, split, metric] = interval
        here = [rows[place] for place in places]
        with_choices = [row for row in here if row["choices"]]
        guessed = {"exact_match": here, "score": here, "rank_classification": with_choices}
        for metric, of_metric in guessed.items():
            if of_metric and metric in columns[reference]:
                guesses[CHANCE, split, metric] = float(chance(of_metric).mean())
                guesses[MAJORITY, split, metric] = float(best_constant(of_metric, metric).mean())
    return Figures(list(columns), sizes, values, guesses)


def _changes(columns: Columns, reference: Columns) -> Columns:
    """The columns of CHANGES, of the metrics that are there."""
    changes: Columns = {}
    for metric, name in CHANGES.items():
        if metric in columns:
            changes[name] = columns[metric] - reference[metric]
    return changes


def _intervals(rows: Sequence[Row], columns: Columns, places: np.ndarray, seed: int, draws: int) -> dict[str, Interval]:
    """metric -> its mean and interval over the rows `places` to which it applies, in the order of TITLES."""
    intervals: dict[str, Interval] = {}
    for metric in TITLES:
        if metric not in columns:
            continue
        values = columns[metric][places]
        applies = ~np.isnan(values)
        if applies.any():
            intervals[metric] = mean_interval(
                values[applies],
                groups=[rows[place]["row"] for place in places[applies]],
                bounds=BOUNDS.get(metric),
                seed=seed,
                draws=draws,
            )
    return intervals


def places_by_split(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """split -> the places of its rows, splits in the order of their first rows."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["split"], []).append(place)
    return {split: np.array(of_split) for split, of_split in places.items()}
