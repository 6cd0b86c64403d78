"""How one stage ended in this run, and the file that remembers it: .anneal/run.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.lib.stage import write_json

FILE = Path(".anneal") / "run.json"
DONE = ("Completed", "Cached")  # what dvc.lock says about such a stage is true of this run


@dataclass(frozen=True)
class Outcome:
    """Completed, Cached, Failed, Skipped or Cancelled; why, in one line; seconds; the log's last lines."""

    state: str
    reason: str = ""
    seconds: float = 0.0
    tail: str = ""
    touched: bool = True  # False: nothing in the workspace was looked at or changed for it


def write(outcomes: Mapping[str, Outcome], before: Mapping[str, Any], seconds: float) -> None:
    """Remember the run. Seconds and states belong here, never into an artifact: those are reproducible."""
    stages = {}
    for name, outcome in outcomes.items():
        entry = asdict(outcome)
        entry.pop("touched")
        stages[name] = entry | {"seconds": round(outcome.seconds, 2), "before": before.get(name, {})}
    write_json(FILE, {"seconds": round(seconds, 2), "stages": stages})


def read() -> dict[str, Any]:
    """The last run of this workspace, {} when there was none."""
    try:
        content = json.loads(FILE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
