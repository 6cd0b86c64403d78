"""One stage of a run: skipped, unchanged, or `dvc repro --single-item` in a child process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.child import Children
from flows.graph import Graph
from flows.lineage import named
from flows.outcome import DONE, Outcome

UNCHANGED = "didn't change, skipping"  # what dvc prints
RESTORED = "is cached - skipping run, checking out outputs"
VIOLATED = "violated, from"  # begins what a failed check's report says
NOISE = (  # advice of dvc that does not belong into the log of a stage
    "Running stage ",
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Updating lock file",
    "Generating lock file",
    "Data and pipelines are up to date",
)


def bring_up_to_date(
    name: str,
    graph: Graph,
    outcomes: Mapping[str, Outcome],
    children: Children,
    *,
    force: bool,
    on_line: Callable[[str], None],
) -> Outcome:
    """Bring one stage up to date, given how those it depends on ended in this run.

    DVC's status from before the run holds while nothing upstream was touched. Behind a stage that ran, dvc is
    asked again: its outputs may be the same as before, and then this stage is unchanged after all.
    """
    above = {parent: outcomes.get(parent, Outcome("Failed")) for parent in graph.nodes[name].upstream}
    if missing := [parent for parent, ended in above.items() if ended.state not in DONE]:
        return Outcome("Skipped", f"{' and '.join(missing)} did not complete", touched=False)
    if not force and not graph.changes[name] and not any(ended.touched for ended in above.values()):
        return Outcome("Cached", "unchanged", touched=False)

    said: set[str] = set()

    def hear(line: str) -> None:
        said.update(sign for sign in (UNCHANGED, RESTORED) if sign in line)
        if not line.strip().startswith(NOISE):
            on_line(line)

    started, clock = time.monotonic(), time.time()
    command = [
        sys.executable,
        "-P",
        "-m",
        "flows.warm_dvc",
        "--wait-for-lock",
        "repro",
        "--single-item",
        name,
    ]
    ended = children.run([*command, *(["--force"] if force else [])], hear)
    seconds = time.monotonic() - started
    if children.stopping.is_set():
        return Outcome("Cancelled", "stopped; run it again to go on", seconds, "\n".join(ended.tail))
    if ended.status != 0:
        tail = [line for line in ended.tail if not line.strip().startswith(NOISE)]
        return Outcome("Failed", cause(tail), seconds, "\n".join([*tail, *contract_report(name, clock)]))
    if UNCHANGED in said:
        return Outcome("Cached", "unchanged: what it reads came out as before", seconds)
    if RESTORED in said:
        return Outcome("Cached", "restored from the cache", seconds)
    return Outcome("Completed", f"ran {seconds:.1f} s", seconds)


def cause(tail: list[str]) -> str:
    """The one line that says why: the stage's own `anneal: ...`, else its last line, else dvc's."""
    own = [line for line in tail if line.startswith("anneal: ")]
    others = [line for line in tail if not line.startswith(("ERROR: failed to reproduce", "> "))]
    return (own or others or tail or ["no output"])[-1].removeprefix("anneal: ").removeprefix("ERROR: ")


def contract_report(name: str, since: float) -> list[str]:
    """What the report of a check says is violated, as lines; [] for another stage or an older report."""
    path = Path("reports").joinpath(*name.split("@")).with_suffix(".json")
    try:
        if "@" not in name or path.stat().st_mtime < since:
            return []
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return ["", f"{VIOLATED} {path}:"] + [
            f"- {result['claim']} (field {result['field']}): {result['violations']} of {result['rows']} "
            f"rows, ids {', '.join(named(result)[:10])}"
            for result in results
            if result["violations"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
