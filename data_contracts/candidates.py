"""Candidates: several answers of one model to one prompt, to be ranked by annotators."""

from __future__ import annotations

import json
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns
from data_contracts.columns import Claims
from tasks.lib.data.rows import CANDIDATE, Row

EXAMPLE = {
    "id": "c3b8f9a01d2e4756",
    "prompt": [{"role": "user", "content": "Review: the film was superb. Good or bad?"}],
    "answers": ["good", "good. Happy to help!", "bad", "good film"],
    "instruction": "2f6d0f0d7f0c2a51",
    "model": "1f3870be274f6c49b3e31a0c6728957f6b7f8c1c2f9a4d1d4d8b1b7b8c9d0e1f",
    "sampling": '{"temperature": 1.0, "top_p": 1.0, "seed": 7}',
}

SCHEMA = CANDIDATE
READS = {
    "candidates": Path("data/candidates/candidates.parquet"),
    "preference": Path("data/curated/preference.parquet"),
    "evaluation": Path("data/curated/evaluation.parquet"),
}
JUDGED = ("candidates",)


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["candidates"]
    frame = pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "roles": columns.roles(rows, "prompt"),
            "prompt": columns.prompts(rows, "prompt"),
            "shortest_message": columns.shortest(rows, "prompt"),
            "answers": columns.sizes(rows, "answers"),
            "instruction": columns.values(rows, "instruction"),
            "model": columns.values(rows, "model"),
            "sampling": [_kind_of(row["sampling"]) for row in rows],
        }
    )
    expectations = {
        "ids are unique": gxe.ExpectColumnValuesToBeUnique(column="id"),
        "a prompt stands in one row only": gxe.ExpectColumnValuesToBeUnique(column="prompt"),
        "roles alternate and the user speaks last": gxe.ExpectColumnValuesToMatchRegex(
            column="roles", regex=columns.CONVERSATION
        ),
        "no message is empty": gxe.ExpectColumnValuesToBeBetween(column="shortest_message", min_value=1),
        "there are at least two answers": gxe.ExpectColumnValuesToBeBetween(column="answers", min_value=2),
        "the model is a SHA-256": gxe.ExpectColumnValuesToMatchRegex(column="model", regex="^[0-9a-f]{64}$"),
        "sampling parameters are a JSON object": gxe.ExpectColumnValuesToBeInSet(
            column="sampling", value_set=["an object"]
        ),
    }
    preference, evaluation = tables.get("preference"), tables.get("evaluation")
    if preference:
        instructions = set(columns.values(preference, "id"))
        frame["instruction_in_preference"] = columns.seen(frame["instruction"], instructions)
        expectations["the instruction is one of the split preference"] = gxe.ExpectColumnValuesToBeInSet(
            column="instruction_in_preference", value_set=["seen"]
        )
    if evaluation:
        prompts = set(columns.prompts(evaluation, "messages"))
        frame["prompt_in_evaluation"] = columns.seen(frame["prompt"], prompts)
        expectations["no prompt is an evaluation prompt"] = gxe.ExpectColumnValuesToBeInSet(
            column="prompt_in_evaluation", value_set=["new"]
        )
    return [Claims(frame, expectations)]


def _kind_of(text: str) -> str:
    """Of a JSON text."""
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    return "an object" if is_object else "something else"
