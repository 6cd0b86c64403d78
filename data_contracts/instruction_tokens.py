"""Instructions as tokens: what SFT trains on, after the chat template and the tokenizer.

The loss is taken where `labels` repeat the ids; -100 is context. A row longer than `max_length` is left out of
training, which is no violation as long as few are; a row that was cut lacks its EOS.
"""

from __future__ import annotations

from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa

from data_contracts import columns
from data_contracts.columns import Claims
from tasks.lib.data.rows import Row
from tasks.lib.models.chat import IGNORED, all_example_ids, labels_of, load_tokenizer

EXAMPLE = {
    "id": "2f6d0f0d7f0c2a51",
    "roles": "user",
    "input_ids": [3, 319, 25, 262, 286, 4, 405, 1],
    "labels": [-100, -100, -100, -100, -100, -100, 405, 1],
    "eos": 1,
    "max_length": 64,
}

IDS = pa.list_(pa.int64())
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("roles", pa.string(), nullable=False),  # of the prompt
        pa.field("input_ids", IDS, nullable=False),
        pa.field("labels", IDS, nullable=False),
        pa.field("eos", pa.int64(), nullable=False),
        pa.field("max_length", pa.int64()),  # null: none
    ]
)
READS: dict[str, Path] = {}  # rows_of makes them
JUDGED = ("instruction_tokens",)
FITTING = 0.95  # the share of the rows that must not be too long


def rows_of(instructions: list[Row], model: Path, max_length: int | None) -> list[Row]:
    """Instructions (rows of INSTRUCTION) as SFT trains on them, by the tokenizer of a model's folder."""
    tokenizer = load_tokenizer(model)
    examples = all_example_ids(tokenizer, instructions, "data/curated")
    rows = []
    for instruction, (ids, is_answer) in zip(instructions, examples, strict=True):
        rows.append(
            {
                "id": instruction["id"],
                "roles": columns.roles_of(instruction["messages"]),
                "input_ids": ids,
                "labels": labels_of(ids, is_answer),
                "eos": tokenizer.eos_token_id,
                "max_length": max_length,
            }
        )
    return rows


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["instruction_tokens"]
    lengths = [len(row["input_ids"]) for row in rows]
    frame = pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "roles": columns.values(rows, "roles"),
            "ids": lengths,
            "labels": columns.sizes(rows, "labels"),
            "trained_tokens": [len(row["labels"]) - row["labels"].count(IGNORED) for row in rows],
            "labels_of_other_tokens": [_labels_of_other_tokens(row) for row in rows],
            "last_label": ["EOS" if row["labels"][-1:] == [row["eos"]] else "another" for row in rows],
            "length": columns.fits(lengths, rows),
        }
    )
    expectations = {
        "roles alternate and the user speaks last (as tokens)": gxe.ExpectColumnValuesToMatchRegex(
            column="roles", regex=columns.CONVERSATION
        ),
        "every token has a label": gxe.ExpectColumnPairValuesToBeEqual(column_A="ids", column_B="labels"),
        "at least one token is trained": gxe.ExpectColumnValuesToBeBetween(column="trained_tokens", min_value=1),
        "a label is its token or context": gxe.ExpectColumnValuesToBeBetween(
            column="labels_of_other_tokens", max_value=0
        ),
        "the answer is whole: a trained EOS ends it": gxe.ExpectColumnValuesToBeInSet(
            column="last_label", value_set=["EOS"]
        ),
        f"at least {FITTING:.0%} of the rows fit max_length": gxe.ExpectColumnValuesToBeInSet(
            column="length", value_set=["fits"], mostly=FITTING
        ),
    }
    return [Claims(frame, expectations)]


def _labels_of_other_tokens(row: Row) -> int:
    """Labels that are neither context nor the token at their place."""
    others = 0
    for token, label in zip(row["input_ids"], row["labels"], strict=False):
        if label not in (IGNORED, token):
            others += 1
    return others
