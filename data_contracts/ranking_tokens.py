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
from data_contracts.columns import Claims
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
READS: dict[str, Path] = {}  # rows_of makes them
JUDGED = ("ranking_tokens",)


def rows_of(rankings: list[Row], model: Path, max_length: int | None) -> list[Row]:
    """Rankings (rows of RANKING) as the reward model and DPO train on them, by the tokenizer of a model's folder.

    The same prompts and answers are in many rankings; each becomes tokens once.
    """
    from tasks.lib.models.chat import all_answer_ids, all_prompt_ids, load_tokenizer

    tokenizer = load_tokenizer(model)
    prompts: dict[str, list[dict[str, str]]] = {}
    answers: dict[str, None] = {}  # in the order in which they first come
    for ranking in rankings:
        prompts[str(ranking["prompt"])] = ranking["prompt"]
        answers.update(dict.fromkeys(ranking["answers"]))
    ids_of_prompt = dict(zip(prompts, all_prompt_ids(tokenizer, list(prompts.values())), strict=True))
    ids_of_answer = dict(zip(answers, all_answer_ids(tokenizer, list(answers)), strict=True))
    rows = []
    for ranking in rankings:
        rows.append(
            {
                "id": ranking["id"],
                "prompt_ids": ids_of_prompt[str(ranking["prompt"])],
                "answers_ids": [ids_of_answer[answer] for answer in ranking["answers"]],
                "ranks": ranking["ranks"],
                "eos": tokenizer.eos_token_id,
                "max_length": max_length,
            }
        )
    return rows


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["ranking_tokens"]
    frame = pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "equal_pairs": [_equal_pairs(row) for row in rows],
            "answers_without_eos": [_answers_without_eos(row) for row in rows],
            "length": columns.fits([_length(row) for row in rows], rows),
        }
    )
    expectations = {
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
    return [Claims(frame, expectations)]


def _equal_pairs(row: Row) -> int:
    """Pairs of answers of which one is better, though they are the same tokens."""
    pairs = 0
    ranked = zip(row["answers_ids"], row["ranks"], strict=False)
    for (ids, rank), (other_ids, other_rank) in combinations(ranked, 2):
        if ids == other_ids and rank != other_rank:
            pairs += 1
    return pairs


def _answers_without_eos(row: Row) -> int:
    return sum(ids[-1:] != [row["eos"]] for ids in row["answers_ids"])


def _length(row: Row) -> int:
    """Tokens of the prompt and its longest answer."""
    return len(row["prompt_ids"]) + max(map(len, row["answers_ids"]), default=0)
