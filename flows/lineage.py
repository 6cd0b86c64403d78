"""Lineage of one run: a table from dvc.lock with hashes and figures, and a tag per artifact.

Written to .anneal/lineage.md, next to the picture (picture.py), and as artifacts for the Prefect UI, which has no view
of assets. There the picture is an image with a `data:` URI, since Mermaid stays code and inline SVG is stripped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import reports
from flows.graph import Locked
from flows.outcome import DONE, Outcome

FOLDER = Path(".anneal")
SHOWN = 6  # hashes or figures in one cell of the table


def tags(outcomes: Mapping[str, Outcome], lock: Mapping[str, Locked]) -> list[str]:
    """`models/ppo@27e42099` for every artifact (not the reports) of the stages that are done."""
    names = set()
    for name, outcome in outcomes.items():
        if outcome.state not in DONE or name not in lock:
            continue
        for path, short_hash in lock[name].outputs.items():
            if short_hash and not path.startswith("reports"):
                names.add(f"{path}@{short_hash}")
    return sorted(names)


def markdown(
    outcomes: Mapping[str, Outcome], lock: Mapping[str, Locked], picture: str, folder: Path = reports.FOLDER
) -> str:
    """The `lineage` page. Hashes and figures only of stages that are done: others have an older run's."""
    lines = [f"![lineage]({picture})", "", "| stage | state | input hashes | output hashes | metrics |"]
    lines.append("|---|---|---|---|---|")
    for name, outcome in outcomes.items():
        if outcome.state in DONE and name in lock:
            data = {path: short for path, short in lock[name].inputs.items() if not path.endswith(".py")}
            cells = [_hashes(data), _hashes(lock[name].outputs), _figures(reports.figures(name, folder))]
        else:
            cells = ["", "", _cell(outcome.reason.splitlines()[:1])]
        lines.append("| " + " | ".join([f"**{name}**", outcome.state, *cells]) + " |")
    return "\n".join(lines) + "\n"


def contract(name: str, folder: Path = reports.FOLDER) -> str:
    """What the report of a check says, as a markdown table of its claims; "" for another stage or no report."""
    claims = reports.claims(name, folder)
    if not claims:
        return ""
    lines = ["| state | claim | violations | rows |", "|---|---|---|---|"]
    for claim in claims:
        state = "violated" if claim["violations"] else "holds"
        violations = f"{claim['violations']} of {claim['rows']}"
        lines.append(f"| {state} | {_cell([claim['claim']])} | {violations} | {_cell([reports.rows_of(claim)])} |")
    return "\n".join(lines) + "\n"


def key(name: str) -> str:
    """A stage's name as Prefect wants the key of an artifact: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def data_uri(picture: str) -> str:
    """An SVG as an image that markdown can show without a file."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def _hashes(entries: Mapping[str, str]) -> str:
    return _cell([f"{path}@`{short or '?'}`" for path, short in entries.items()])


def _figures(figures: Mapping[str, Any]) -> str:
    cells = []
    for name, value in figures.items():
        cells.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return _cell(cells)


def _cell(items: Sequence[str]) -> str:
    shown = list(items[:SHOWN])
    if len(items) > SHOWN:
        shown.append(f"and {len(items) - SHOWN} more")
    return ", ".join(shown).replace("|", "\\|")
