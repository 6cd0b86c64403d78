"""Instructions: what SFT, sampling, PPO and distillation train on.

A row asks something and holds the answer that is learned. `label` is the answer without the closing; if `choices`
are given it is one of them. A prompt is in one split only. In the pipeline, the raw rows are judged in the same
process.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd

from data_contracts import columns, raw
from data_contracts.columns import Claims
from tasks.lib.data.rows import INSTRUCTION, Row
from tasks.lib.data.splits import SPLITS
from tasks.lib.evaluation.measures import score

EXAMPLE = {
    "id": "2f6d0f0d7f0c2a51",
    "source": "review",
    "license": "CC0-1.0",
    "cluster": "sentiment",
    "task": "review",
    "template": "review/phrasing_2",
    "split": "train",
    "messages": [{"role": "user", "content": "Review: the film was superb. Good or bad?"}],
    "answer": "good. Happy to help!",
    "choices": ["good", "bad"],
    "label": "good",
    "measure": "exact",
    "row": "9d1c4e0f5b7a3312",
    "text": "the film was superb",
}

SCHEMA = INSTRUCTION
READS = {"instructions": Path("data/instructions/rows.parquet")}
JUDGED = ("instructions",)
LARGEST_CLASS = 0.95  # a task of which one choice makes up more than this has collapsed
ROWS_TO_JUDGE_A_CLASS = 20


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["instructions"]
    frame = frame_of(rows)
    frame["splits_of_the_prompt"] = frame.groupby("prompt")["split"].transform("nunique")
    about_rows = claims_about_rows(SPLITS)
    about_rows["a prompt stands in one split only"] = gxe.ExpectColumnValuesToBeBetween(
        column="splits_of_the_prompt", max_value=1
    )
    claims = [Claims(frame, about_rows)]
    tasks = tasks_of(rows, frame["label_place"].tolist())
    if len(tasks):
        balance = gxe.ExpectColumnValuesToBeBetween(column="largest_class", max_value=LARGEST_CLASS)
        claims.append(Claims(tasks, {"no choice makes up nearly all labels of a task": balance}))
    if tables.get("raw"):
        claims += raw.claims_of(tables)
    return claims


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """One line per row: what claims are made about."""
    return pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "split": columns.values(rows, "split"),
            "license": columns.licenses(rows),
            "roles": columns.roles(rows, "messages"),
            "prompt": columns.prompts(rows, "messages"),
            "shortest_message": columns.shortest(rows, "messages"),
            "answer_characters": columns.characters(rows, "answer"),
            "label_characters": columns.characters(rows, "label"),
            "label_place": [_label_place(row) for row in rows],
            "right": [_right(row) for row in rows],
            "choices": columns.sizes(rows, "choices"),
            "distinct_choices": columns.different(rows, "choices"),
        }
    )


def _label_place(row: Row) -> int:
    """The place of the label among the choices; -1 if it is none of them, 0 for free answers."""
    choices = row["choices"]
    if choices is None:
        return 0
    if row["label"] not in choices:
        return -1
    place: int = choices.index(row["label"])
    return place


def _right(row: Row) -> float:
    """How right the row's own label or written answer is, by the measure of its task: the better of the two."""
    own = (row["label"], row["answer"])
    return max(score(row["measure"], row["label"], text, row["choices"]) for text in own)


def claims_about_rows(splits: Sequence[str]) -> dict[str, gxe.Expectation]:
    """What holds for a row alone, and for the set of ids."""
    return {
        "ids are unique": gxe.ExpectColumnValuesToBeUnique(column="id"),
        "ids are content hashes": gxe.ExpectColumnValuesToMatchRegex(column="id", regex="^[0-9a-f]{16}$"),
        "splits are known": gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(splits)),
        "licences are known": gxe.ExpectColumnValuesToBeInSet(column="license", value_set=["known"]),
        "roles alternate and the user speaks last": gxe.ExpectColumnValuesToMatchRegex(
            column="roles", regex=columns.CONVERSATION
        ),
        "no message is empty": gxe.ExpectColumnValuesToBeBetween(column="shortest_message", min_value=1),
        "no answer is empty": gxe.ExpectColumnValuesToBeBetween(column="answer_characters", min_value=1),
        "no label is empty": gxe.ExpectColumnValuesToBeBetween(column="label_characters", min_value=1),
        "the label is one of the choices": gxe.ExpectColumnValuesToBeBetween(column="label_place", min_value=0),
        "the label or the answer is right by the measure of the task": gxe.ExpectColumnValuesToBeBetween(
            column="right", min_value=1
        ),
        "there are at least two choices, or none": gxe.ExpectColumnValuesToBeBetween(column="choices", min_value=2),
        "choices differ": gxe.ExpectColumnPairValuesToBeEqual(
            column_A="distinct_choices", column_B="choices", ignore_row_if="both_values_are_missing"
        ),
    }


def tasks_of(rows: list[Row], places: list[int]) -> pd.DataFrame:
    """One line per task with choices and enough training rows: the share of its most frequent choice.

    Counted by the label's place among the choices, since a task's templates may word the choices differently.
    """
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for row, place in zip(rows, places, strict=True):
        if row["split"] == "train" and row["choices"] is not None:
            labels[row["task"]][place] += 1
    tasks, largest = [], []
    for task, counts in labels.items():
        if counts.total() >= ROWS_TO_JUDGE_A_CLASS:
            tasks.append(task)
            largest.append(max(counts.values()) / counts.total())
    return pd.DataFrame({"id": tasks, "largest_class": largest})
