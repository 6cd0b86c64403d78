"""Figures as Markdown tables, readable in a terminal too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.lib.evaluation.figures import CHANCE, MAJORITY, TITLES, WITH_INTERVAL, Columns, Figures, places_by_split
from tasks.lib.evaluation.intervals import Interval
from tasks.lib.evaluation.measures import content_metric
from tasks.lib.evaluation.scores import best_constant, chance

Row = Mapping[str, Any]
GUESSES = {CHANCE: "guess", MAJORITY: "constant"}  # the last columns of a table
NOTHING = "-"
LEFT = 2  # columns of words, which are set left; numbers are set right


def table_of(figures: Figures, metrics: Iterable[str]) -> str:
    """A line per split and metric, a column per model, then guessing and the best constant answer."""
    metrics = list(metrics)
    lines: list[list[str]] = []
    for split, size in figures.sizes.items():
        for metric in metrics:
            intervals = [figures.values.get((model, split, metric)) for model in figures.models]
            if not any(intervals):
                continue
            cells = [f"{split} ({size})", TITLES[metric]]
            cells += [_interval(interval, metric) for interval in intervals]
            cells += [_number(figures.guesses.get((kind, split, metric))) for kind in GUESSES]
            lines.append(cells)
    return markdown(["split (rows)", "figure", *figures.models, *GUESSES.values()], lines)


def table_per_task(rows: Sequence[Row], columns: Mapping[str, Columns]) -> str:
    """A line per split and task: exact match (or score) of every model, and after a slash its rank classification."""
    metric = content_metric(next(iter(columns.values())))
    lines: list[list[str]] = []
    for split, of_split in places_by_split(rows).items():
        places_by_task: dict[str, list[int]] = {}
        for place in of_split:
            places_by_task.setdefault(rows[place]["task"], []).append(place)
        for task, places in sorted(places_by_task.items()):
            here = [rows[place] for place in places]
            cells = [split, task, str(len(here))]
            for of_model in columns.values():
                cell = _number(of_model[metric][places].mean())
                ranked = of_model["rank_classification"][places]
                if not np.isnan(ranked).all():
                    cell += f" / {_number(float(np.nanmean(ranked)))}"
                cells.append(cell)
            cells += [_number(chance(here).mean()), _number(best_constant(here, metric).mean())]
            lines.append(cells)
    return markdown(["split", "task", "rows", *columns, *GUESSES.values()], lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = LEFT) -> str:
    """A Markdown table whose columns are aligned in the source: the first `left` to the left, the rest to the right."""
    table = [list(header)]
    for line in lines:
        table.append([cell.replace("|", "\\|") for cell in line])
    widths = [0] * len(header)
    for cells in table:
        widths = [max(width, len(cell)) for width, cell in zip(widths, cells, strict=True)]
    rule = ["-" * width for width in widths[:left]] + ["-" * (width - 1) + ":" for width in widths[left:]]
    table.insert(1, rule)
    return "\n".join(_line(cells, widths, left) for cells in table)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded: list[str] = []
    for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        padded.append(cell.ljust(width) if place < left else cell.rjust(width))
    return "| " + " | ".join(padded) + " |"


def _interval(interval: Interval | None, metric: str) -> str:
    if interval is None:
        return NOTHING
    return str(interval) if metric in WITH_INTERVAL else _number(interval.mean)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
