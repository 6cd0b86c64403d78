"""What the tests of importers share: files of rows, and what they are imported to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export


def imported(path: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of the ranking schema, and how many annotations each rule dropped."""
    rows, dropped, _ = cleaned(read_export(path, **options), "CC0-1.0")
    return rows, dict(Counter(item.rule for item in dropped))


def written(folder: Path, rows: list[Any], name: str = "export.json") -> Path:
    """A file of rows as JSON, or as JSONL by its name."""
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder / name
