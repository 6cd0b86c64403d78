"""The picture and the page say what the run did."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from flows import lineage, picture, summary
from flows.graph import Locked
from flows.outcome import STATES, Outcome

EDGES = {
    "base": (),
    "render": (),
    "sft": ("base", "render"),
    "dpo": ("sft", "base"),
    "check@rows": ("render",),
}
LOCK = {"sft": Locked({"models/base": "aa", "tasks/sft.py": "bb"}, {"models/sft": "27e42099", "reports/sft.json": "c"})}


def test_the_picture_has_a_box_per_stage_and_an_edge_per_direct_dependency() -> None:
    root = xml.fromstring(picture.draw(EDGES, {"sft": Outcome("Failed")}))
    names = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("font-weight")}
    assert names == set(EDGES)
    paths = list(root.iter("{http://www.w3.org/2000/svg}path"))
    assert len(paths) == 4  # base -> dpo goes without saying: base -> sft -> dpo
    fills = {rect.get("fill") for rect in root.iter("{http://www.w3.org/2000/svg}rect")}
    assert picture.COLOURS["Failed"][0] in fills
    assert picture.draw({}, {}).startswith("<svg")


HARD = {  # long edges, some of which must cross, and a part of its own
    "a": (), "b": (), "c": ("a",), "d": ("b",), "e": ("c",), "f": ("d", "e"), "g": ("e",), "h": ("b",), "i": ("h",),
    "j": ("f", "g", "i"), "k": ("h", "e"), "l": ("a", "b"), "m": ("l",), "n": ("m", "k", "j"), "alone": (),
}  # fmt: skip


def test_boxes_do_not_overlap_and_no_line_passes_through_one() -> None:
    drawn = picture.draw(HARD, {})
    assert drawn == picture.draw(HARD, {})
    root = xml.fromstring(drawn)
    rectangles = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("rx")]
    boxes = [(float(rect.get("x", "")), float(rect.get("y", ""))) for rect in rectangles]
    assert len(boxes) == len(HARD)
    for x, y in boxes:
        assert [other for other in boxes if other[1] == y and abs(other[0] - x) < picture.WIDTH + 8] == [(x, y)]
        assert 0 < x < float(root.get("width", "")) - picture.WIDTH
        assert 0 < y < float(root.get("height", "")) - picture.HEIGHT
    rows = {y for _, y in boxes}
    long_lines = 0
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        for x, bottom in re.findall(r"([\d.]+) [\d.]+ V([\d.]+)", path.get("d", "")):  # straight down through a row
            top = float(bottom) - picture.HEIGHT
            long_lines += 1
            assert top in rows
            assert not [box for box in boxes if box[1] == top and box[0] <= float(x) <= box[0] + picture.WIDTH]
    assert long_lines > 3


def test_every_state_has_a_colour_and_a_style() -> None:
    assert tuple(picture.COLOURS) == tuple(summary.STYLES) == STATES


def test_tags_name_artifacts_of_stages_that_are_done() -> None:
    assert lineage.tags({"sft": Outcome("Completed")}, LOCK) == ["models/sft@27e42099"]
    assert lineage.tags({"sft": Outcome("Failed")}, LOCK) == []


def test_the_page_is_a_markdown_table(workspace: Path) -> None:
    reports = workspace / "reports"
    (reports / "check").mkdir(parents=True)
    (reports / "check" / "rows.json").write_text('{"failed": 0, "detail": [1]}')
    outcomes = {
        "sft": Outcome("Cached"),
        "check@rows": Outcome("Completed"),
        "dpo": Outcome("Failed", "a|b\nmore"),
    }
    lines = lineage.markdown(outcomes, LOCK | {"check@rows": Locked({}, {})}, "x.svg").splitlines()
    assert lines[4] == "| **sft** | Cached | models/base@`aa` | models/sft@`27e42099`, reports/sft.json@`c` |  |"
    assert lines[5] == "| **check@rows** | Completed |  |  | failed 0 |"
    assert lines[6] == "| **dpo** | Failed |  |  | a\\|b |"


def test_the_summary_names_one_figure_per_stage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(summary.HEADLINES, "sft", ("exact match", "before", "after"))
    assert summary.headline("sft", {"before": 0, "after": 0.8812}) == "exact match 0 -> 0.881"
    figures = {"base.rows.exact_match": 0, "base.rows.score": 0.25, "sft.rows.score": 0.5}
    assert summary.headline("evaluate", figures) == "score, base -> sft 0.25 -> 0.5"
    assert summary.headline("new", {"ready": True, "rows_read": 12}) == "rows read 12"
    assert summary.headline("choose", {"chosen": "sft", "dpo.passes": False}) == "chosen sft"
    assert summary.headline("empty", {}) == ""


def test_a_contract_is_a_table_of_its_claims_with_the_place_of_rows(workspace: Path) -> None:
    report = """{"contract": "rows", "results": [
        {"claim": "a | b", "violations": 0, "rows": 9, "ids": [], "places": []},
        {"claim": "c", "violations": 2, "rows": 9, "ids": ["1f", "2f"], "places": ["rows.csv:3", ""]}]}"""
    (workspace / "reports" / "check").mkdir(parents=True)
    (workspace / "reports" / "check" / "rows.json").write_text(report)
    assert lineage.contract("check@rows").splitlines()[2:] == [
        "| holds | a \\| b | 0 of 9 |  |",
        "| violated | c | 2 of 9 | 1f (rows.csv:3), 2f |",
    ]
    assert lineage.contract("check@others") == lineage.contract("sft") == ""


def test_keys_of_artifacts_are_what_prefect_takes() -> None:
    assert lineage.key("check@Rows_1") == "check-rows-1"
