"""What SFT is given and what it must not have seen: held-out rows against all training rows, and these as tokens.

The splits `rows`, `templates`, `clusters` say what is new about a held-out row: the row itself, its template as well,
or its whole cluster of tasks. Each claim of novelty is checked here. The training rows as tokens have a contract of
their own, instruction_tokens, which the pipeline judges in the same process: Great Expectations takes seconds to load.
"""

from __future__ import annotations

from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns, instruction_tokens
from data_contracts.columns import Claims
from data_contracts.instructions import claims_about_rows, frame_of
from tasks.lib.data.rows import INSTRUCTION, Row
from tasks.lib.data.splits import EVALUATION

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
    "measure": "exact",
    "row": "51f0a2c4d7e8b963",
    "text": "the soup was bland",
}

SCHEMA = INSTRUCTION
TRAINING = ("train", "preference", "policy", "validation")
READS = {name: Path(f"data/curated/{name}.parquet") for name in ("evaluation", *TRAINING)}
JUDGED = ("evaluation",)


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["evaluation"]
    training: list[Row] = []
    for name in TRAINING:
        training += tables.get(name, ())
    frame, expectations = frame_of(rows), claims_about_rows(EVALUATION)
    if training:
        in_training = {
            "id": _seen(rows, training, "id"),
            "row": _seen(rows, training, "row"),
            "prompt": columns.seen(frame["prompt"], set(columns.prompts(training, "messages"))),
        }
        for field, states in in_training.items():
            frame[f"{field}_in_training"] = states
            expectations[f"no {field} is seen in training"] = _is(f"{field}_in_training", "new")
    claims = [Claims(frame, expectations)]
    if tables.get("instruction_tokens"):
        claims += instruction_tokens.claims_of(tables)
    if training:
        claims += claims_about_splits(rows, training)
    return claims


def claims_about_splits(rows: list[Row], training: list[Row]) -> list[Claims]:
    """What each split says is new about its rows."""
    claims = []
    for split, field, state, claim in (
        ("templates", "template", "new", "no held-out template is seen in training"),
        ("clusters", "cluster", "new", "no held-out cluster is seen in training"),
        ("rows", "template", "seen", "new rows are asked through templates that training sees"),
    ):
        of_split = [row for row in rows if row["split"] == split]
        if of_split:
            column = f"{field}_in_training"
            frame = {"id": columns.values(of_split, "id"), column: _seen(of_split, training, field)}
            claims.append(Claims(pd.DataFrame(frame), {claim: _is(column, state)}))
    return claims


def _seen(rows: list[Row], training: list[Row], field: str) -> list[str]:
    return columns.seen(columns.values(rows, field), set(columns.values(training, field)))


def _is(column: str, state: str) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[state])
