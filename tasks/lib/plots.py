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
BAR_GROUP_WIDTH = 0.8  # of all bars of a group together; groups are 1 apart
LEVEL_STYLES = ("--", ":", "-.")

Row = Mapping[str, Any]


def curves(stem: Path, rows: Sequence[Row], x: str, panels: Mapping[str, Sequence[str]]) -> None:
    """Write `<stem>.csv` (all columns of `rows`) and `<stem>.png` (one panel per title, a line per column).

    A row may lack a column (figures that are taken every few steps): the cell stays empty and the line
    joins the points that are there. A value that is not finite is treated the same way.
    """
    first = [x]
    for columns in panels.values():
        first += columns
    _write_csv(stem, rows, first)
    with _figure(stem, list(panels)) as axes:
        for axis, columns in zip(axes, panels.values(), strict=True):
            for colour, column in zip(_colours(len(columns)), columns, strict=True):
                xs, ys = _points(rows, x, column)
                marker = "o" if len(xs) <= 30 else ""
                axis.plot(xs, ys, color=colour, marker=marker, ms=3, lw=1.5, label=column)
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
    _write_csv(stem, rows, [group, bar, *panels.values()])
    groups, names = _distinct(rows, group), _distinct(rows, bar)
    width = BAR_GROUP_WIDTH / max(len(names), 1)
    with _figure(stem, list(panels)) as axes:
        for axis, column in zip(axes, panels.values(), strict=True):
            for number, (colour, name) in enumerate(zip(_colours(len(names)), names, strict=True)):
                offset = (number - (len(names) - 1) / 2) * width  # from the middle of a group
                places: list[float] = []
                shown: list[Row] = []
                for row in rows:
                    if row[bar] == name and _is_finite(row.get(column)):
                        places.append(groups.index(row[group]) + offset)
                        shown.append(row)
                _draw_bars(axis, places, shown, column, width * 0.92, colour, str(name))
            for style, (suffix, name) in zip(LEVEL_STYLES, (levels or {}).items(), strict=False):
                _draw_level(axis, _first_values(rows, group, f"{column}_{suffix}"), groups, style, name)
            axis.set_xticks(range(len(groups)), [str(name) for name in groups])
            axis.grid(axis="x", visible=False)
        if axes:
            handles, labels = axes[0].get_legend_handles_labels()
            axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _draw_bars(
    axis: Axes, places: Sequence[float], rows: Sequence[Row], column: str, width: float, colour: str, label: str
) -> None:
    """A bar at every place, as high as its row's value, with the interval that the row may have."""
    heights: list[float] = []
    below: list[float] = []
    above: list[float] = []
    for row in rows:
        height = row[column]
        heights.append(height)
        below.append(max(height - row.get(f"{column}_low", height), 0.0))
        above.append(max(row.get(f"{column}_high", height) - height, 0.0))
    axis.bar(places, heights, width, color=colour, label=label)
    axis.errorbar(places, heights, yerr=[below, above], fmt="none", ecolor="#333333", elinewidth=1, capsize=2)


def _first_values(rows: Sequence[Row], group: str, column: str) -> dict[Any, float]:
    """group -> the first finite value of `column` in it."""
    values: dict[Any, float] = {}
    for row in rows:
        if _is_finite(row.get(column)):
            values.setdefault(row[group], row[column])
    return values


def _draw_level(axis: Axes, values: Mapping[Any, float], groups: Sequence[Any], style: str, name: str) -> None:
    """A mark across each group that has a value; the first group's is named in the legend."""
    for place, group in enumerate(groups):
        if group in values:
            level = [values[group], values[group]]
            label = name if place == 0 else None
            axis.plot([place - 0.45, place + 0.45], level, color="#333333", ls=style, lw=1.2, label=label)


def calibration_diagram(stem: Path, rows: Sequence[Row], x: str = "confidence", y: str = "accuracy") -> None:
    """Write `<stem>.csv` and `<stem>.png`: predicted against observed fraction per bin, with the diagonal.

    A row's `count`, if there, sets the area of its point.
    """
    _write_csv(stem, rows, first=[x, y])
    with _figure(stem, ["Reliability"]) as axes:
        most = max((row.get("count", 1) for row in rows), default=1) or 1
        known = [row for row in rows if _is_finite(row.get(x)) and _is_finite(row.get(y))]
        sizes = [15 + 120 * row.get("count", most) / most for row in known]
        xs, ys = _points(known, x, y)
        axes[0].plot([0, 1], [0, 1], color="#999999", ls="--", lw=1, label="perfectly calibrated")
        axes[0].plot(xs, ys, color=COLOURS[0], lw=1)
        axes[0].scatter(xs, ys, sizes, color=COLOURS[0], label="bins")
        axes[0].set(xlabel=x, ylabel=y, ylim=(-0.03, 1.03))
        axes[0].legend(loc="best")


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
        with replaced(_with_suffix(stem, ".png")) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})


def _write_csv(stem: Path, rows: Sequence[Row], first: Sequence[str]) -> None:
    """Columns in the order of `first`, then as they turn up. Six digits; an empty cell for no value."""
    columns = dict.fromkeys(first)  # a set that keeps its order
    for row in rows:
        columns |= dict.fromkeys(row)
    with (
        replaced(_with_suffix(stem, ".csv")) as temporary,
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


def _points(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of two columns, of the rows whose `y` is finite."""
    xs: list[float] = []
    ys: list[float] = []
    for row in rows:
        if _is_finite(row.get(y)):
            xs.append(row[x])
            ys.append(row[y])
    return xs, ys


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)  # Path.with_suffix would cut a stem that holds a dot


def _distinct(rows: Sequence[Row], column: str) -> list[Any]:
    """The values of a column, each once, in the order in which they turn up."""
    return list(dict.fromkeys(row[column] for row in rows))


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
