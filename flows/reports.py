"""What the flow reads from the reports that stages write: figures, and the claims of a check."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

FOLDER = Path("reports")
SHOWN_ROWS = 10  # ids of violating rows that are named


def path_of(stage: str, folder: Path = FOLDER) -> Path:
    """reports/sft.json of `sft`, reports/check/rows.json of `check@rows`."""
    return folder.joinpath(*stage.split("@")).with_suffix(".json")


def _content(stage: str, folder: Path) -> dict[str, Any]:
    """The report of a stage; {} when there is none that can be read."""
    try:
        return dict(json.loads(path_of(stage, folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # TypeError, ValueError: JSON, but no object
        return {}


def figures(stage: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The flat figures of a stage's report; {} if there are none."""
    content = _content(stage, folder)
    return {key: value for key, value in content.items() if not isinstance(value, (dict, list))}


def claims(stage: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The results of a check, a dict per claim (data_contracts.contract.Result); [] for another stage."""
    results = _content(stage, folder).get("results")
    return results if isinstance(results, list) else []


def rows_of(claim: dict[str, Any]) -> str:
    """The first rows that violate a claim: `id (file:row), ...`."""
    rows = []
    for row_id, place in zip_longest(claim["ids"], claim["places"], fillvalue=""):
        rows.append(f"{row_id} ({place})" if place else row_id)
    return ", ".join(rows[:SHOWN_ROWS])
