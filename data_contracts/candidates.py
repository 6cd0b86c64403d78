"""Candidates: several answers of one model to one prompt, to be ranked by annotators."""

from __future__ import annotations

import json
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns
from data_contracts.columns import Judgement
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


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    rows = tables["candidates"]
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "roles": [columns.roles(row["prompt"]) for row in rows],
            "prompt": [columns.prompt(row["prompt"]) for row in rows],
            "shortest_message": [columns.shortest(row["prompt"]) for row in rows],
            "answers": [len(row["answers"]) for row in rows],
            "instruction": [row["instruction"] for row in rows],
            "model": [row["model"] for row in rows],
            "sampling": ["an object" if _is_object(row["sampling"]) else "something else" for row in rows],
        }
    )
    claims = {
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
    if preference := tables.get("preference"):
        frame["instruction_in_preference"] = columns.seen(frame["instruction"], {row["id"] for row in preference})
        claims["the instruction is one of the split preference"] = gxe.ExpectColumnValuesToBeInSet(
            column="instruction_in_preference", value_set=["seen"]
        )
    if evaluation := tables.get("evaluation"):
        frame["prompt_in_evaluation"] = columns.seen(
            frame["prompt"], columns.prompts(row["messages"] for row in evaluation)
        )
        claims["no prompt is an evaluation prompt"] = gxe.ExpectColumnValuesToBeInSet(
            column="prompt_in_evaluation", value_set=["new"]
        )
    return [Judgement(frame, claims)]


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
