"""Pictures of a stage's figures: a CSV that `dvc plots` reads and a PNG that works offline.

The same rows give the same bytes: Agg, matplotlib's own defaults whatever the user's matplotlibrc says,
no software version in the metadata. matplotlib is imported late, because it takes most of a second.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lib.stage import replaced, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#4D4D4D")
STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}
PANEL_INCHES = (3.6, 2.9)
PANELS_PER_ROW = 4

Row = Mapping[str, Any]


def curves(stem: Path, rows: Sequence[Row], x: str, panels: Mapping[str, Sequence[str]]) -> None:
    """Write `<stem>.csv` (all columns of `rows`) and `<stem>.png` (one panel per title, a line per column).

    A row may lack a column (figures that are taken every few steps): the cell stays empty and the line
    joins the points that are there. A value that is not finite is treated the same way.
    """
    _write_csv(stem, rows, first=[x, *(column for columns in panels.values() for column in columns)])
    with _figure(stem, list(panels)) as axes:
        for axis, columns in zip(axes, panels.values(), strict=True):
            for colour, column in zip(_colours(len(columns)), columns, strict=True):
                points = [(row[x], row[column]) for row in rows if _finite(row.get(column))]
                marker = "o" if len(points) <= 30 else ""
                axis.plot(*_columns(points), color=colour, marker=marker, ms=3, lw=1.5, label=column)
            axis.set_xlabel(x)
            axis.legend(loc="best")


def bars(
    stem: Path,
    rows: Sequence[Row],
    group: str,
    bar: str,
    panels: Mapping[str, str],
    levels: Mapping[str, str] | None = None,
) -> None:
    """Write `<stem>.csv` and `<stem>.png`: per panel (title -> column) the bars of each `group` side by side.

    `<column>_low` and `<column>_high` of a row, if there, become its interval. `levels` (suffix -> name) are
    dashed marks over a whole group, such as the chance level: `<column>_<suffix>` of any of its rows.
    """
    _write_csv(stem, rows, first=[group, bar, *panels.values()])
    groups, names = _ordered(rows, group), _ordered(rows, bar)
    width = 0.8 / max(len(names), 1)
    with _figure(stem, list(panels)) as axes:
        for axis, column in zip(axes, panels.values(), strict=True):
            for index, (colour, name) in enumerate(zip(_colours(len(names)), names, strict=True)):
                mine = [row for row in rows if row[bar] == name and _finite(row.get(column))]
                places = [groups.index(row[group]) + (index - (len(names) - 1) / 2) * width for row in mine]
                heights = [row[column] for row in mine]
                spans = [
                    [max(row[column] - row.get(f"{column}_low", row[column]), 0.0) for row in mine],
                    [max(row.get(f"{column}_high", row[column]) - row[column], 0.0) for row in mine],
                ]
                axis.bar(places, heights, width * 0.92, color=colour, label=str(name))
                axis.errorbar(places, heights, yerr=spans, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
            _draw_levels(axis, rows, group, groups, {f"{column}_{end}": name for end, name in (levels or {}).items()})
            axis.set_xticks(range(len(groups)), [str(name) for name in groups])
            axis.grid(axis="x", visible=False)
        if axes:
            handles, labels = axes[0].get_legend_handles_labels()
            axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def calibration_diagram(stem: Path, rows: Sequence[Row], x: str = "confidence", y: str = "accuracy") -> None:
    """Write `<stem>.csv` and `<stem>.png`: predicted against observed share per bin, beside the diagonal.

    A row's `count`, if there, sets the area of its point.
    """
    _write_csv(stem, rows, first=[x, y])
    with _figure(stem, ["Reliability"]) as axes:
        most = max((row.get("count", 1) for row in rows), default=1) or 1
        mine = [row for row in rows if _finite(row.get(x)) and _finite(row.get(y))]
        sizes = [15 + 120 * row.get("count", most) / most for row in mine]
        axes[0].plot([0, 1], [0, 1], color="#999999", ls="--", lw=1, label="perfectly calibrated")
        axes[0].plot([row[x] for row in mine], [row[y] for row in mine], color=COLOURS[0], lw=1)
        axes[0].scatter([row[x] for row in mine], [row[y] for row in mine], sizes, color=COLOURS[0], label="bins")
        axes[0].set(xlabel=x, ylabel=y, ylim=(-0.03, 1.03))
        axes[0].legend(loc="best")


def _draw_levels(axis: Axes, rows: Sequence[Row], group: str, groups: list[Any], levels: Mapping[str, str]) -> None:
    for style, (column, name) in zip(("--", ":", "-."), levels.items(), strict=False):
        for place, key in enumerate(groups):
            value = next((row[column] for row in rows if row[group] == key and _finite(row.get(column))), None)
            if value is not None:
                label = name if place == 0 else None
                axis.plot(
                    [place - 0.45, place + 0.45],
                    [value, value],
                    color="#333333",
                    ls=style,
                    lw=1.2,
                    label=label,
                )


@contextmanager
def _figure(stem: Path, titles: Sequence[str]) -> Iterator[list[Axes]]:
    """Yield one axis per title, in rows of four; save the figure as `<stem>.png` afterwards."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(len(titles), PANELS_PER_ROW) or 1
    down = max(math.ceil(len(titles) / across), 1)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(STYLE)
        figure = Figure(figsize=(PANEL_INCHES[0] * across, PANEL_INCHES[1] * down), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        for axis, title in zip(grid, titles, strict=False):
            axis.set_title(title)
        for axis in grid[len(titles) :]:
            axis.set_visible(False)
        yield grid[: len(titles)]
        with replaced(_named(stem, ".png")) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _write_csv(stem: Path, rows: Sequence[Row], first: Sequence[str]) -> None:
    """Columns in the order of `first`, then as they turn up. Six digits; an empty cell for no value."""
    columns = list(dict.fromkeys([*first, *(column for row in rows for column in row)]))
    with (
        replaced(_named(stem, ".csv")) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return rounded(value)


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _named(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # with_suffix would cut a stem that holds a dot


def _ordered(rows: Sequence[Row], column: str) -> list[Any]:
    return list(dict.fromkeys(row[column] for row in rows))


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
