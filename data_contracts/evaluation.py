"""Evaluation: rows that no training may have seen, judged against what training sees.

The splits `rows`, `templates`, `clusters` say what is new about a row: the row itself, its template as well,
or its whole cluster of tasks. Each claim of novelty is checked here.
"""

from __future__ import annotations

from pathlib import Path

import great_expectations.expectations as gxe

from data_contracts import columns
from data_contracts.contract import Judgement
from data_contracts.instructions import claims_about_rows, frame_of
from tasks.lib.data.rows import INSTRUCTION, Row

EXAMPLE = {
    "id": "7a5c11d92be04f6e",
    "source": "review",
    "license": "CC0-1.0",
    "cluster": "sentiment",
    "task": "review",
    "template": "review/heldout_1",
    "split": "templates",
    "messages": [{"role": "user", "content": "the soup was bland. Would you call this review good or bad?"}],
    "answer": "bad",
    "choices": ["good", "bad"],
    "label": "bad",
    "row": "51f0a2c4d7e8b963",
    "text": "the soup was bland",
}

SCHEMA = INSTRUCTION
TRAINING = ("train", "preference", "policy", "validation")
READS = {name: Path(f"data/curated/{name}.parquet") for name in ("evaluation", *TRAINING)}
JUDGED = ("evaluation",)
SPLITS = ("rows", "templates", "clusters")


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    rows = tables["evaluation"]
    seen = [row for name in TRAINING for row in tables.get(name, ())]
    found = [Judgement(frame_of(rows), claims_about_rows(list(SPLITS)))]
    if not seen:
        return found
    found.append(
        Judgement(
            frame_of(rows),
            {
                "no id is seen in training": _absent("id", {row["id"] for row in seen}),
                "no raw row is seen in training": _absent("row", {row["row"] for row in seen}),
                "no prompt is seen in training": _absent("prompt", columns.prompts(seen)),
            },
        )
    )
    new = {
        "templates": ("no held-out template is seen in training", "template"),
        "clusters": ("no held-out cluster is seen in training", "cluster"),
    }
    for split, (claim, field) in new.items():
        if heldout := [row for row in rows if row["split"] == split]:
            claims = {claim: _absent(field, {row[field] for row in seen})}
            found.append(Judgement(frame_of(heldout), claims))
    if known := [row for row in rows if row["split"] == "rows"]:
        claim = "new rows are asked through templates that training sees"
        templates = sorted({row["template"] for row in seen})
        claims = {claim: gxe.ExpectColumnValuesToBeInSet(column="template", value_set=templates)}
        found.append(Judgement(frame_of(known), claims))
    return found


def _absent(column: str, values: set[str]) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToNotBeInSet(column=column, value_set=sorted(values))
