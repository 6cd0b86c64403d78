"""Figures: means per split, intervals where they are promised, and tables that people can read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tasks.lib.evaluation.figures import TITLES, figures_of
from tasks.lib.evaluation.tables import markdown, table_of, table_per_task

NAN = math.nan


def rows() -> list[dict[str, Any]]:
    base = {"task": "t", "label": "a", "measure": "exact", "choices": ["a", "b"]}
    return [
        {**base, "split": "rows", "row": "1"},
        {**base, "split": "rows", "row": "2", "label": "b"},
        {**base, "split": "rows", "row": "3", "choices": None, "task": "free"},
        {**base, "split": "clusters", "row": "4", "choices": None, "task": "free"},
    ]


def columns() -> dict[str, dict[str, np.ndarray]]:
    return {
        "sft": {
            "exact_match": np.array([1.0, 0.0, 1.0, 0.0]),
            "rank_classification": np.array([1, 1, NAN, NAN]),
        },
        "dpo": {
            "exact_match": np.array([1.0, 0.0, 0.0, 0.0]),
            "rank_classification": np.array([1, 0, NAN, NAN]),
            "win_rate": np.array([0.5, 0.5, 0.0, 0.5]),
            "kl": np.array([2.0, NAN, 4.0, NAN]),
        },
    }


def test_flat_figures_are_means_over_the_rows_where_a_metric_applies() -> None:
    flat = figures_of(rows(), columns(), "sft", seed=0, draws=200).flat()
    assert flat["rows.rows"] == 3 and flat["clusters.rows"] == 1
    assert flat["sft.rows.exact_match"] == pytest.approx(2 / 3)
    assert flat["sft.rows.rank_classification"] == 1.0
    assert flat["dpo.rows.rank_classification"] == 0.5
    assert flat["dpo.rows.kl"] == 3.0
    assert flat["dpo.rows.exact_match_change"] == pytest.approx(-1 / 3)
    assert flat["rows.exact_match_chance"] == pytest.approx(1 / 3)  # two rows of two choices, one free row
    assert flat["rows.rank_classification_chance"] == 0.5
    assert flat["rows.exact_match_majority"] == pytest.approx(2 / 3)
    assert flat["sft.rows.exact_match_low"] <= flat["sft.rows.exact_match"] <= flat["sft.rows.exact_match_high"]


def test_what_applies_nowhere_is_left_out_rather_than_nan() -> None:
    flat = figures_of(rows(), columns(), "sft", seed=0, draws=200).flat()
    assert not [key for key, value in flat.items() if isinstance(value, float) and math.isnan(value)]
    for absent in ("sft.clusters.rank_classification", "dpo.clusters.kl", "sft.rows.win_rate", "sft.rows.kl"):
        assert absent not in flat
    assert "clusters.rank_classification_chance" not in flat


def test_one_row_has_the_widest_interval() -> None:
    flat = figures_of(rows(), columns(), "sft", seed=0, draws=200).flat()
    assert (flat["sft.clusters.exact_match_low"], flat["sft.clusters.exact_match_high"]) == (0.0, 1.0)


def test_renderings_of_one_raw_row_are_drawn_together() -> None:
    many = [{"task": "t", "label": "a", "choices": None, "split": "rows", "row": str(i // 4)} for i in range(80)]
    values = {"sft": {"exact_match": np.repeat(np.arange(20) % 2, 4).astype(float)}}
    together = figures_of(many, values, "sft", seed=0, draws=500).values["sft", "rows", "exact_match"]
    apart = [{**row, "row": str(i)} for i, row in enumerate(many)]
    alone = figures_of(apart, values, "sft", seed=0, draws=500).values["sft", "rows", "exact_match"]
    assert together.high - together.low > 1.6 * (alone.high - alone.low)


def test_there_is_a_bar_per_split_and_model() -> None:
    bars = figures_of(rows(), columns(), "sft", seed=0, draws=200).bars()
    assert [(bar["split"], bar["model"]) for bar in bars] == [
        ("rows", "sft"), ("rows", "dpo"), ("clusters", "sft"), ("clusters", "dpo")]  # fmt: skip
    assert bars[0]["exact_match_chance"] == pytest.approx(1 / 3)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_table_shows_models_and_guessing() -> None:
    table = table_of(figures_of(rows(), columns(), "sft", seed=0, draws=200), TITLES)
    header, _, first, *_ = table.splitlines()
    assert cells_of(header) == [
        "split (rows)", "figure", "sft", "dpo", "guess", "constant"]  # fmt: skip
    cells = cells_of(first)
    assert cells[:2] == ["rows (3)", "exact match"] and cells[2].startswith("0.67 [") and cells[4:] == ["0.33", "0.67"]


def test_the_table_per_task_has_rank_classification_after_exact_match() -> None:
    lines = table_per_task(rows(), columns()).splitlines()[2:]
    assert [cells_of(line) for line in lines] == [
        ["rows", "free", "1", "1.00", "0.00", "0.00", "1.00"],
        ["rows", "t", "2", "0.50 / 1.00", "0.50 / 0.50", "0.50", "0.50"],
        ["clusters", "free", "1", "0.00", "0.00", "0.00", "1.00"],
    ]


def test_markdown_is_aligned_and_keeps_its_columns() -> None:
    table = markdown(["a", "b"], [["x|y", "1"], ["long word", "22"]], left=1)
    assert table.splitlines() == [
        "| a         |  b |",
        "| --------- | -: |",
        "| x\\|y      |  1 |",
        "| long word | 22 |",
    ]


def test_a_score_has_an_interval_a_change_and_guesses_of_its_own_and_takes_the_place_in_the_table_per_task() -> None:
    of_models = columns()
    for name, values in {"sft": [1, 0.5, 1, 0], "dpo": [1, 1, 0, 0]}.items():
        of_models[name]["score"] = np.array(values, dtype=float)
    measured = [row | {"measure": "normalised"} for row in rows()]
    flat = figures_of(measured, of_models, "sft", seed=0, draws=100).flat()
    assert flat["sft.rows.score"] == pytest.approx(2.5 / 3) and "sft.rows.score_low" in flat
    assert flat["dpo.rows.score_change"] == pytest.approx(-0.5 / 3)
    assert flat["rows.score_majority"] == flat["rows.exact_match_majority"]
    assert "0.75 / 1.00" in table_per_task(measured, of_models)
    assert "sft.rows.score" not in figures_of(rows(), columns(), "sft", seed=0, draws=100).flat()
