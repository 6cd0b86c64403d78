"""From values per row to figures per split, and to the tables people read.

A column is one model's metric, (N,) a value per row in the order of the rows, NaN where it does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.lib.evaluation.intervals import Interval, mean_interval
from tasks.lib.evaluation.scores import chance, majority

Row = Mapping[str, Any]
Columns = dict[str, np.ndarray]

TITLES = {  # the metrics, in the order of the tables
    "exact_match": "exact match",
    "rank_classification": "rank classification",
    "win_rate": "win rate, judge",
    "reward_win_rate": "win rate, reward model",
    "gold": "utility, gold",
    "reward": "reward model's score",
    "closing": "answers with closing",
    "ended": "answers ended by EOS",
    "tokens": "tokens per answer",
    "kl": "KL, nats per answer",
    "exact_match_change": "change of exact match",
}
SHARES = ("exact_match", "rank_classification", "win_rate", "reward_win_rate", "closing", "ended")
BOUNDS = {**dict.fromkeys(SHARES, (0.0, 1.0)), "exact_match_change": (-1.0, 1.0)}
WITH_INTERVAL = (*SHARES[:4], "kl", "exact_match_change")
GUESSES = {"chance": "guess", "majority": "constant"}  # what needs no model, and its column in the tables
NOTHING = "-"


@dataclass(frozen=True)
class Figures:
    """Every model's figures on every split, beside what guessing and the best constant answer give."""

    models: list[str]
    sizes: dict[str, int]  # split -> rows
    values: dict[tuple[str, str, str], Interval]  # (model, split, metric)
    guesses: dict[tuple[str, str, str], float]  # ("chance" or "majority", split, metric)

    def flat(self) -> dict[str, Any]:
        """`rows.rows`, `rows.exact_match_chance`, `sft.rows.exact_match`, `sft.rows.exact_match_low`, ..."""
        flat: dict[str, Any] = {f"{split}.rows": size for split, size in self.sizes.items()}
        flat |= {f"{split}.{metric}_{kind}": value for (kind, split, metric), value in self.guesses.items()}
        for (model, split, metric), value in self.values.items():
            flat[f"{model}.{split}.{metric}"] = value.mean
            if metric in WITH_INTERVAL:
                flat |= {f"{model}.{split}.{metric}_{end}": getattr(value, end) for end in ("low", "high")}
        return flat

    def lines(self) -> list[dict[str, Any]]:
        """One dict per split and model, as `plots.bars` takes them."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for (model, split, metric), value in self.values.items():
            line = found.setdefault((split, model), {"split": split, "model": model})
            line |= {metric: value.mean}
            line |= {f"{metric}_low": value.low, f"{metric}_high": value.high} if metric in WITH_INTERVAL else {}
        for (kind, split, metric), number in self.guesses.items():
            for model in self.models:
                found[split, model][f"{metric}_{kind}"] = number
        return [found[split, model] for split in self.sizes for model in self.models]

    def table(self, metrics: Iterable[str]) -> str:
        """A line per split and metric, a column per model, then guessing and the best constant answer."""
        metrics = list(metrics)
        lines = []
        for split, size in self.sizes.items():
            for metric in metrics:
                shown = [self.values.get((model, split, metric)) for model in self.models]
                if any(shown):
                    cells = [_shown(value, metric) for value in shown]
                    cells += [_number(self.guesses.get((kind, split, metric))) for kind in GUESSES]
                    lines.append([f"{split} ({size})", TITLES[metric], *cells])
        return markdown(["split (rows)", "figure", *self.models, *GUESSES.values()], lines)


def summarised(
    rows: Sequence[Row], columns: Mapping[str, Columns], reference: str, *, seed: int, draws: int
) -> Figures:
    """Means and bootstrap intervals of all columns on all splits; renderings of one raw row stay together."""
    splits = {split: _places(rows, split=split) for split in dict.fromkeys(row["split"] for row in rows)}
    values, guesses = {}, {}
    for split, places in splits.items():
        for model, mine in columns.items():
            change = mine["exact_match"] - columns[reference]["exact_match"]
            extra = {} if model == reference else {"exact_match_change": change}
            for metric in (metric for metric in TITLES if metric in mine | extra):
                column = (mine | extra)[metric]
                there = places[~np.isnan(column[places])]
                if there.size:
                    values[model, split, metric] = mean_interval(
                        column[there],
                        groups=[rows[place]["row"] for place in there],
                        bounds=BOUNDS.get(metric),
                        seed=seed,
                        draws=draws,
                    )
        here = [rows[place] for place in places]
        for metric, some in {
            "exact_match": here,
            "rank_classification": [r for r in here if r["choices"]],
        }.items():
            if some:
                guesses["chance", split, metric] = float(chance(some).mean())
                guesses["majority", split, metric] = float(majority(some).mean())
    return Figures(list(columns), {split: len(places) for split, places in splits.items()}, values, guesses)


def table_per_task(rows: Sequence[Row], columns: Mapping[str, Columns]) -> str:
    """A line per split and task: exact match of every model, and after a stroke its rank classification."""
    lines = []
    for split in dict.fromkeys(row["split"] for row in rows):
        for task in sorted({row["task"] for row in rows if row["split"] == split}):
            places = _places(rows, split=split, task=task)
            here = [rows[place] for place in places]
            cells = [split, task, str(len(here))]
            for mine in columns.values():
                ranked = mine["rank_classification"][places]
                also = f" / {np.nanmean(ranked):.2f}" if not np.isnan(ranked).all() else ""
                cells.append(f"{mine['exact_match'][places].mean():.2f}{also}")
            lines.append([*cells, f"{chance(here).mean():.2f}", f"{majority(here).mean():.2f}"])
    return markdown(["split", "task", "rows", *columns, *GUESSES.values()], lines, words=2)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], words: int = 2) -> str:
    """A Markdown table that is readable in a terminal too: the first `words` columns left, the rest right."""
    cells = [list(header), *[[cell.replace("|", "\\|") for cell in line] for line in lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    rule = ["-" * width if place < words else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(_line(line, widths, words) for line in (cells[0], rule, *cells[1:]))


def _line(cells: Sequence[str], widths: Sequence[int], words: int) -> str:
    padded = [
        cell.ljust(width) if place < words else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def _places(rows: Sequence[Row], **wanted: str) -> np.ndarray:
    return np.array([i for i, row in enumerate(rows) if all(row[k] == v for k, v in wanted.items())], dtype=int)


def _shown(value: Interval | None, metric: str) -> str:
    if value is None:
        return NOTHING
    return str(value) if metric in WITH_INTERVAL else _number(value.mean)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"
