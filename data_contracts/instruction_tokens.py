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
from data_contracts.columns import Judgement
from tasks.lib.data.rows import Row

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
READS: dict[str, Path] = {}  # the check makes them of rows and a tokenizer
JUDGED = ("instruction_tokens",)
FITTING = 0.95  # the share of the rows that must not be too long
CONTEXT = -100


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    rows = tables["instruction_tokens"]
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "roles": [row["roles"] for row in rows],
            "ids": [len(row["input_ids"]) for row in rows],
            "labels": [len(row["labels"]) for row in rows],
            "trained_tokens": [len(row["labels"]) - row["labels"].count(CONTEXT) for row in rows],
            "labels_of_other_tokens": [_others(row) for row in rows],
            "last_label": ["EOS" if row["labels"][-1:] == [row["eos"]] else "another" for row in rows],
            "length": [columns.fit(len(row["input_ids"]), row["max_length"]) for row in rows],
        }
    )
    claims = {
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
    return [Judgement(frame, claims)]


def _others(row: Row) -> int:
    """Labels that are neither context nor the token at their place."""
    pairs = zip(row["input_ids"], row["labels"], strict=False)
    return sum(label not in (CONTEXT, token) for token, label in pairs)
