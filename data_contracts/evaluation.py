"""Evaluation: rows that no training may have seen, judged against what training sees.

The splits `rows`, `templates`, `clusters` say what is new about a row: the row itself, its template as well,
or its whole cluster of tasks. Each claim of novelty is checked here; in the line, so are the training rows as
tokens (instruction_tokens), because both checks stand before SFT and Great Expectations takes seconds to load.
"""

from __future__ import annotations

from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns, instruction_tokens
from data_contracts.columns import Judgement
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
    training = [row for name in TRAINING for row in tables.get(name, ())]
    frame, claims = frame_of(rows), claims_about_rows(list(SPLITS))
    found = instruction_tokens.judgements(tables) if tables.get("instruction_tokens") else []
    if not training:
        return [Judgement(frame, claims), *found]
    prompts = columns.prompts(row["messages"] for row in training)
    for field, states in {
        "id": _seen(rows, training, "id"),
        "row": _seen(rows, training, "row"),
        "prompt": columns.seen(frame["prompt"], prompts),
    }.items():
        frame[f"{field}_in_training"] = states
        claims[f"no {field} is seen in training"] = _is(f"{field}_in_training", "new")
    found.insert(0, Judgement(frame, claims))
    for split, field, state, claim in (
        ("templates", "template", "new", "no held-out template is seen in training"),
        ("clusters", "cluster", "new", "no held-out cluster is seen in training"),
        ("rows", "template", "seen", "new rows are asked through templates that training sees"),
    ):
        if part := [row for row in rows if row["split"] == split]:
            column = f"{field}_in_training"
            narrow = {"id": [row["id"] for row in part], column: _seen(part, training, field)}
            found.append(Judgement(pd.DataFrame(narrow), {claim: _is(column, state)}))
    return found


def _seen(rows: list[Row], training: list[Row], field: str) -> list[str]:
    return columns.seen([row[field] for row in rows], {row[field] for row in training})


def _is(column: str, state: str) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[state])
