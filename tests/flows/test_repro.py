"""What became of a stage is known without reading what DVC prints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import dvc_child, repro
from flows.child import Children
from flows.graph import read_graph
from flows.outcome import Outcome

Run = Callable[..., tuple[Outcome, list[str]]]


@pytest.fixture
def bring_up_to_date(project: Path) -> Run:
    """Run one stage of the project whose upstream stages are as they are; its outcome and the lines of its log."""

    def run(name: str, force: bool = False) -> tuple[Outcome, list[str]]:
        lines: list[str] = []
        graph = read_graph([name])
        upstream = {parent: Outcome("Completed") for parent in graph.nodes[name].upstream}
        result = repro.bring_up_to_date(name, graph, upstream, Children(), force=force, on_line=lines.append)
        return result, lines

    return run


def test_a_stage_runs_is_unchanged_runs_by_force_and_comes_from_the_cache(bring_up_to_date: Run) -> None:
    ran, log = bring_up_to_date("start")
    assert (ran.state, ran.reason.split()[0]) == ("Completed", "ran")
    assert log == ["> cp raw.txt start.txt"]  # none of DVC's advice

    unchanged, log = bring_up_to_date("start")
    assert (unchanged.state, unchanged.reason, log) == ("Cached", "unchanged", [])
    assert not unchanged.touched

    bring_up_to_date("left")
    unchanged, log = bring_up_to_date("left")  # `start` was touched: DVC is asked
    assert (unchanged.state, log) == ("Cached", [])
    assert unchanged.reason == "unchanged: what it reads came out as before"

    forced, log = bring_up_to_date("start", force=True)
    assert (forced.state, log) == ("Completed", ["> cp raw.txt start.txt"])

    Path("start.txt").unlink()
    restored, log = bring_up_to_date("start")
    assert (restored.state, restored.reason, log) == ("Cached", "restored from the cache", [])
    assert Path("start.txt").read_text() == "raw one\n"

    for text in ("raw two\n", "raw one\n"):  # there and back: DVC remembers earlier runs, too
        Path("raw.txt").write_text(text)
        again, _ = bring_up_to_date("start")
    assert (again.state, again.reason) == ("Cached", "restored from the cache")


@pytest.mark.parametrize(
    ("command", "reason", "is_mistake"),
    [
        ("echo first; echo the last line; exit 3", "the last line", False),
        ("echo 'anneal: put it right'; echo afterwards; exit 1", "put it right", True),
        ("exit 3", "failed to reproduce 'start': failed to run: exit 3, exited with 3", False),
        ("echo all is well", "failed to reproduce 'start': output 'start.txt' does not exist", False),
        ("kill -9 $$", "failed to reproduce 'start': failed to run: kill -9 $$, exited with -9", False),
    ],
)
def test_why_a_stage_failed(bring_up_to_date: Run, command: str, reason: str, is_mistake: bool) -> None:
    graph = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(graph.replace("cmd: cp raw.txt start.txt", f"cmd: {command!r}"))
    failed, log = bring_up_to_date("start")
    assert (failed.state, failed.reason, failed.is_mistake) == ("Failed", reason, is_mistake)
    assert failed.tail.splitlines() == log
    assert log[-1].startswith("dvc: failed to reproduce 'start': ")


def test_a_child_that_dvc_kept_from_running_says_why_in_its_last_line() -> None:
    tail = ["> python -m tasks.sft", "sft  12/12  loss 0.1", "dvc: failed to reproduce 'sft': no space left"]
    assert repro.cause(tail, dvc_child.DVC_FAILED) == "failed to reproduce 'sft': no space left"
    assert repro.cause(tail, dvc_child.COMMAND_FAILED) == "sft  12/12  loss 0.1"
    assert repro.cause([], 137) == "no output"


def test_a_violated_contract_names_its_claims_and_rows_and_an_older_report_does_not_count(workspace: Path) -> None:
    claim = {"claim": "ids are unique", "field": "id", "rows": 9, "violations": 2}
    holds = {**claim, "claim": "rows are there", "violations": 0, "ids": [], "places": []}
    violated = {**claim, "ids": ["1f", "2f"], "places": ["rows.csv:3"]}
    report = Path("reports/check/rows.json")
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps({"contract": "rows", "results": [holds, violated]}))
    assert repro.violations_of("check@rows", since=0.0) == [
        "",
        "violated, from reports/check/rows.json:",
        "- ids are unique (field id): 2 of 9 rows, ids 1f (rows.csv:3), 2f",
    ]
    assert repro.violations_of("check@rows", since=time.time() + 60) == []
    assert repro.violations_of("check@others", since=0.0) == repro.violations_of("sft", since=0.0) == []
