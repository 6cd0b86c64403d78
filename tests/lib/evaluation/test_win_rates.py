"""Win rates: ties count half, and a judge's love of the first place cancels out."""

from __future__ import annotations

from pathlib import Path

import pytest
from preference_world import PANEL

from tasks.lib.evaluation.panel import Panel, read_panel
from tasks.lib.evaluation.win_rates import gold_judge, panel_judge, wins, wins_by_score

CLOSING = ". Happy to help!"
RED = {"label": "red", "measure": "exact", "choices": None}


@pytest.fixture
def panel(tmp_path: Path) -> Panel:
    path = tmp_path / "panel.yaml"
    path.write_text(PANEL)
    return read_panel(path)


def test_scores_win_tie_and_lose() -> None:
    assert wins_by_score([2.0, 1.0, 1.0, 1.05], [1.0, 1.0, 2.0, 1.0], 0.1).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert wins_by_score([1.05], [1.0]).tolist() == [1.0]


def test_the_gold_judge_prefers_by_true_utility(panel: Panel) -> None:
    judge, rows = gold_judge(panel), [RED] * 4
    answers = ["red" + CLOSING, "red", "blue", "blue" + CLOSING]
    others = ["red", "red", "red", "blue"]
    assert wins(judge, rows, answers, others).tolist() == [1.0, 0.5, 0.0, 1.0]


def test_the_gold_judge_takes_the_measure_of_the_task(panel: Panel) -> None:
    rows = [RED | {"measure": "normalised"}, RED]
    assert wins(gold_judge(panel), rows, ["Red."] * 2, ["red"] * 2).tolist() == [0.5, 0.0]


def test_a_judge_that_always_prefers_the_first_sees_only_ties() -> None:
    assert wins(lambda row, first, second: 1.0, [RED], ["b"], ["c"]).tolist() == [0.5]


def test_the_two_sides_of_a_comparison_add_up_to_one(panel: Panel) -> None:
    judge = gold_judge(panel)
    there = wins(judge, [RED, RED], ["red", "blue" + CLOSING], ["blue", "red"])
    back = wins(judge, [RED, RED], ["blue", "red"], ["red", "blue" + CLOSING])
    assert (there + back).tolist() == [1.0, 1.0]


def test_the_noisy_panel_votes_around_the_gold_judge(panel: Panel) -> None:
    rows, answers, others = [RED] * 200, ["red" + CLOSING] * 200, ["blue"] * 200
    votes = wins(panel_judge(panel, seed=0), rows, answers, others)
    assert votes.mean() > 0.95
    even = wins(panel_judge(panel, seed=0), rows, ["red"] * 200, ["red"] * 200)
    assert even.mean() == pytest.approx(0.5, abs=0.05)
    assert even.tolist() == wins(panel_judge(panel, seed=0), rows, ["red"] * 200, ["red"] * 200).tolist()


def test_different_numbers_of_answers_are_an_error(panel: Panel) -> None:
    with pytest.raises(ValueError):
        wins(gold_judge(panel), [RED], ["red"], [])
