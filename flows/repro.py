"""One stage of a run: skipped, unchanged, or brought up to date by DVC in a child process (dvc_child.py)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

from flows import dvc_child, reports
from flows.child import Children
from flows.graph import Graph
from flows.outcome import DONE, Outcome

MISTAKE = "anneal: "  # begins the line with which a stage ends when the user has to put something right
BY_DVC = ("dvc: ", "> ")  # begins what dvc_child.py itself prints


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
    upstream = {parent: outcomes.get(parent, Outcome("Failed")) for parent in graph.nodes[name].upstream}
    missing = [parent for parent, outcome in upstream.items() if outcome.state not in DONE]
    if missing:
        return Outcome("Skipped", f"{' and '.join(missing)} did not complete", touched=False)
    if not force and not graph.changes[name] and not any(outcome.touched for outcome in upstream.values()):
        return Outcome("Cached", "unchanged", touched=False)

    started, clock = time.monotonic(), time.time()
    options = ["--force"] if force else []
    ended = children.run([sys.executable, "-P", "-m", "flows.dvc_child", name, *options], on_line)
    seconds = time.monotonic() - started
    if children.stopping.is_set():
        return Outcome("Cancelled", "stopped; run it again to go on", seconds, "\n".join(ended.tail))
    if ended.status == dvc_child.RAN:
        return Outcome("Completed", f"ran {seconds:.1f} s", seconds)
    if ended.status == dvc_child.UNCHANGED:
        return Outcome("Cached", "unchanged: what it reads came out as before", seconds)
    if ended.status == dvc_child.RESTORED:
        return Outcome("Cached", "restored from the cache", seconds)
    violations = violations_of(name, clock)
    return Outcome(
        "Failed",
        cause(ended.tail, ended.status),
        seconds,
        "\n".join([*ended.tail, *violations]),
        is_mistake=any(line.startswith(MISTAKE) for line in ended.tail),
        is_violation=bool(violations),
    )


def cause(tail: list[str], status: int) -> str:
    """The one line that says why a stage failed: its own `anneal: ...`, else its last line, else DVC's."""
    mistakes = [line for line in tail if line.startswith(MISTAKE)]
    if mistakes:
        return mistakes[-1].removeprefix(MISTAKE)
    own = [line for line in tail if not line.startswith(BY_DVC)]
    if own and status != dvc_child.DVC_FAILED:
        return own[-1]
    if not tail:
        return "no output"
    return tail[-1].removeprefix("dvc: ")


def violations_of(name: str, since: float) -> list[str]:
    """What the report of a check says is violated, as lines; [] for another stage or an older report."""
    path = reports.path_of(name)
    if not path.is_file() or path.stat().st_mtime < since:
        return []
    lines = []
    for claim in reports.claims(name):
        if claim["violations"]:
            rows = f"{claim['violations']} of {claim['rows']} rows, ids {reports.rows_of(claim)}"
            lines.append(f"- {claim['claim']} (field {claim['field']}): {rows}")
    if not lines:
        return []
    return ["", f"violated, from {path}:", *lines]
