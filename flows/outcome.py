"""How one stage ended in this run, and the file that remembers it: .anneal/run.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tasks.lib.stage import write_json

FILE = Path(".anneal") / "run.json"
StageState = Literal["Completed", "Cached", "Failed", "Skipped", "Cancelled"]
STATES: tuple[StageState, ...] = get_args(StageState)
DONE: tuple[StageState, ...] = ("Completed", "Cached")  # what dvc.lock says about such a stage is true of this run


@dataclass(frozen=True)
class Outcome:
    """The state of a stage; why, in one line; seconds; the last lines of its log."""

    state: StageState
    reason: str = ""
    seconds: float = 0.0
    tail: str = ""
    touched: bool = True  # False: nothing in the workspace was looked at or changed for it
    is_mistake: bool = False  # the user has to put something right: another try would end the same way
    is_violation: bool = False  # a contract does not hold: the report of its check says which rows


def write(outcomes: Mapping[str, Outcome], before: Mapping[str, Any], seconds: float) -> None:
    """Remember the run; `before` has the figures of each stage's report as the run found it.

    Seconds and states belong here, never into an artifact: those are reproducible.
    """
    stages = {}
    for name, outcome in outcomes.items():
        stages[name] = {
            "state": outcome.state,
            "reason": outcome.reason,
            "seconds": round(outcome.seconds, 2),
            "tail": outcome.tail,
            "before": before.get(name, {}),
        }
    write_json(FILE, {"seconds": round(seconds, 2), "stages": stages})


def read() -> dict[str, Any]:
    """The last run of this workspace, {} when there was none."""
    try:
        return dict(json.loads(FILE.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
