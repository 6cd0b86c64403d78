"""Plots: the same rows give the same bytes, and every figure reaches the CSV."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tasks.lib.plots import bars, calibration_diagram, curves

PNG = b"\x89PNG\r\n\x1a\n"


def steps() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": step, "loss": 1 / (step + 1)} for step in range(5)]
    rows[4]["validation"] = 0.123456789
    return rows


def test_curves_write_the_same_bytes_twice_whatever_the_settings_are(workspace: Path) -> None:
    import matplotlib

    curves(Path("reports/plots/a"), steps(), "step", {"Loss": ["loss", "validation"]})
    matplotlib.rcParams["font.size"] = 30.0
    try:
        curves(Path("reports/plots/b"), steps(), "step", {"Loss": ["loss", "validation"]})
        assert matplotlib.rcParams["font.size"] == 30.0  # the caller's settings are his own
    finally:
        matplotlib.rcdefaults()
    png = Path("reports/plots/a.png").read_bytes()
    assert png.startswith(PNG) and png == Path("reports/plots/b.png").read_bytes()
    assert b"matplotlib" not in png.lower()
    assert sorted(p.name for p in Path("reports/plots").iterdir()) == ["a.csv", "a.png", "b.csv", "b.png"]


def test_the_csv_has_the_plotted_columns_first_and_empty_cells_where_nothing_was_taken(
    workspace: Path,
) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 0, "other": "x", "loss": math.nan},
        {"step": 1, "loss": 0.123456789, "validation": None},
    ]
    curves(Path("a"), rows, "step", {"Loss": ["loss", "validation"]})
    assert Path("a.csv").read_text() == "step,loss,validation,other\n0,,,x\n1,0.123457,,\n"


def test_a_stem_may_hold_a_dot(workspace: Path) -> None:
    curves(Path("v1.2"), steps(), "step", {"Loss": ["loss"]})
    assert Path("v1.2.csv").is_file() and Path("v1.2.png").is_file()


@pytest.mark.parametrize("rows", [[], [{"step": 0}]])
def test_a_run_without_figures_still_has_its_files(workspace: Path, rows: list[dict[str, Any]]) -> None:
    curves(Path("a"), rows, "step", {"Loss": ["loss"]})
    assert Path("a.png").read_bytes().startswith(PNG)


def test_many_panels_and_many_curves(workspace: Path) -> None:
    columns = [f"c{number}" for number in range(12)]
    rows = [{"step": 0, **dict.fromkeys(columns, 0)}, {"step": 1, **dict.fromkeys(columns, 3)}]
    panels = {f"Panel {number}": columns[: number + 1] for number in range(10)}
    curves(Path("a"), rows, "step", panels)
    assert Path("a.png").read_bytes().startswith(PNG)


def test_bars_draw_intervals_and_levels_and_skip_what_is_missing(workspace: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "split": "rows",
            "model": "sft",
            "score": 0.8,
            "score_low": 0.7,
            "score_high": 0.9,
            "score_chance": 0.3,
        },
        {"split": "rows", "model": "dpo", "score": 0.9},
        {"split": "clusters", "model": "sft", "score": None},
    ]
    for name in "ab":
        bars(Path(name), rows, "split", "model", {"Score": "score", "Other": "other"}, {"chance": "guess"})
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert Path("a.csv").read_text().splitlines()[1] == "rows,sft,0.8,,0.7,0.9,0.3"


def test_a_calibration_diagram_takes_bins_with_and_without_counts(workspace: Path) -> None:
    calibration_diagram(
        Path("a"), [{"confidence": 0.6, "accuracy": 0.5, "count": 7}, {"confidence": 0.9, "accuracy": None}]
    )
    assert Path("a.csv").read_text() == "confidence,accuracy,count\n0.6,0.5,7\n0.9,,\n"
