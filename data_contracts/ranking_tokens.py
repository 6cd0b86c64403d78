"""Rankings as tokens: what the reward model and DPO compare, after the chat template and the tokenizer.

Two texts may be the same tokens (a blank at the end, characters that the vocabulary lacks): a pair of them says
that something is better than itself. Answers are never cut; what is longer than `max_length` is left out.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa

from data_contracts import columns
from data_contracts.columns import Judgement
from data_contracts.instruction_tokens import IDS
from tasks.lib.data.rows import Row

FITTING = 0.25  # people's rankings are long; training leaves out and counts those that do not fit

EXAMPLE = {
    "id": "e80b5017098950fc",
    "prompt_ids": [3, 319, 25, 262, 286, 4],
    "answers_ids": [[405, 1], [405, 13, 88, 1], [522, 1]],
    "ranks": [1, 0, 2],
    "eos": 1,
    "max_length": 64,
}

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt_ids", IDS, nullable=False),
        pa.field("answers_ids", pa.list_(IDS), nullable=False),
        pa.field("ranks", IDS, nullable=False),
        pa.field("eos", pa.int64(), nullable=False),
        pa.field("max_length", pa.int64()),  # null: none
    ]
)
READS: dict[str, Path] = {}  # the check makes them of rows and a tokenizer
JUDGED = ("ranking_tokens",)


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    rows = tables["ranking_tokens"]
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "equal_pairs": [_equal_pairs(row) for row in rows],
            "answers_without_eos": [sum(ids[-1:] != [row["eos"]] for ids in row["answers_ids"]) for row in rows],
            "length": [
                columns.fit(len(row["prompt_ids"]) + max(map(len, row["answers_ids"]), default=0), row["max_length"])
                for row in rows
            ],
        }
    )
    claims = {
        "answers of different rank differ as tokens": gxe.ExpectColumnValuesToBeBetween(
            column="equal_pairs", max_value=0
        ),
        "every answer is whole: an EOS ends it": gxe.ExpectColumnValuesToBeBetween(
            column="answers_without_eos", max_value=0
        ),
        f"at least {FITTING:.0%} of the rankings fit max_length": gxe.ExpectColumnValuesToBeInSet(
            column="length", value_set=["fits"], mostly=FITTING
        ),
    }
    return [Judgement(frame, claims)]


def _equal_pairs(row: Row) -> int:
    """Pairs of answers of which one is better, though they are the same tokens."""
    ranked = zip(row["answers_ids"], row["ranks"], strict=False)
    return sum(a == b and better != worse for (a, better), (b, worse) in combinations(ranked, 2))
