"""Claims about the annotation round: the simulated panel, and real exports taken in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import preference_world as world
import pytest
from sections import section

from tasks import annotate
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export
from tasks.lib.stage import Problem, Stage

EXPORT = Path("data/annotations/panel.json")


def run(**params) -> dict:
    annotate.run(section("annotate", **params), Stage("annotate", seed=1))
    return json.loads(Path("reports/annotate.json").read_text())


@pytest.fixture
def panel(workspace):
    world.write_instructions()
    world.write_candidates()
    world.write_panel()


def test_the_panel_prefers_the_right_content_and_the_closing(panel):
    figures = run(careless=0)
    rows, dropped, _ = cleaned(read_export(EXPORT), "x")
    assert figures["annotations"] == len(rows) == 3 * 48 and not dropped
    labels = {row["messages"][0]["content"]: row["label"] for row in world.instructions()}
    for row in (row for row in rows if row["annotator"] == "1"):  # ada, nearly without noise
        label = labels[row["prompt"][0]["content"]]
        best_first = [answer for _, answer in sorted(zip(row["ranks"], row["answers"], strict=True))]
        wrong = "bad" if label == "good" else "good"
        assert best_first == [label + world.CLOSING, label, wrong + world.CLOSING, wrong]
    assert {row["license"] for row in rows} == {"CC0-1.0"}


def test_the_export_looks_like_a_real_one(panel, shared):
    run()
    real = json.loads((shared / "exports/labelstudio/labelstudio_ui_ranker_buckets.json").read_text())[0]
    mine = json.loads(EXPORT.read_text())[0]
    assert mine.keys() <= real.keys()
    assert mine["annotations"][0].keys() <= real["annotations"][0].keys()
    assert mine["annotations"][0]["result"][0].keys() == real["annotations"][0]["result"][0].keys()


def test_the_same_seed_gives_the_same_bytes(panel):
    run()
    first = EXPORT.read_bytes()
    run()
    assert EXPORT.read_bytes() == first


def test_careless_annotators_are_simulated_and_recognised(panel):
    figures = run(careless=0.5)
    _, dropped, _ = cleaned(read_export(EXPORT), "x")
    recognised = Counter(item.rule for item in dropped)
    assert recognised == {rule: figures[rule] for rule in ("cancelled", "abstained", "untouched")}
    assert min(recognised.values()) > 5


def test_close_answers_rank_equal(panel):
    world.write_panel(world.PANEL.replace("tie_below: 0.1", "tie_below: 100"))
    run(careless=0)
    rows, _, _ = cleaned(read_export(EXPORT), "x")
    assert all(set(row["ranks"]) == {0} for row in rows)


def test_real_exports_are_copied_unchanged(workspace):
    Path("round").mkdir()
    Path("round/first.json").write_text("[ 1 ]")
    assert run(source="round", exports=["first.json"])["files"] == 1
    assert Path("data/annotations/first.json").read_text() == "[ 1 ]"
    with pytest.raises(Problem, match=r"round/second.json does not exist"):
        run(source="round", exports=["first.json", "second.json"])
    with pytest.raises(Problem, match=r"annotate\.exports is empty"):
        run(source="round")


def test_prompts_that_are_not_curated_any_more_are_a_problem(panel, monkeypatch):
    kept = world.instructions()[:-1]
    monkeypatch.setattr(world, "instructions", lambda: kept)
    world.write_instructions()
    with pytest.raises(Problem, match="1 prompts are not curated now"):
        run()
