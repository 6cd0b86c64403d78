"""Labelled texts for a classifier: the curated rows of one task, or a table of texts and labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.lib.data.mixing import split_of
from tasks.lib.data.privacy import excerpt
from tasks.lib.data.prompts import normal_form
from tasks.lib.data.row_problems import Row, fail, kind_of
from tasks.lib.data.rows import content_id, read_parquet, read_table
from tasks.lib.stage import Problem

FILES = {"train": "train.parquet", "validation": "validation.parquet", "test": "evaluation.parquet"}
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of a table's texts, by hash


class Labelled(NamedTuple):
    """One text, with its place (file:row) and its label: a name, or a number for a regression."""

    where: str
    id: str
    text: str
    label: str
    number: float


def read_labelled(place: Path, task: str, numbers: bool) -> dict[str, list[Labelled]]:
    """The splits train, validation and test. `numbers`: every label must be one.

    A folder holds curated rows, of which those of `task` are taken, each raw row once whatever its templates; a
    file is a table with the columns text and label, split by the hash of the text, so that alike texts (prompts.py)
    are never in two splits. Problem for a split without rows, and for labels that are no classes, or no numbers.
    """
    splits: dict[str, list[Labelled]] = {split: [] for split in FILES}
    if place.is_dir():
        for split, name in FILES.items():
            splits[split] = list(_curated(place / name, task, numbers))
    else:
        for row in _table(place, numbers):
            splits[split_of(normal_form(row.text), SHARES)].append(row)
    for split, rows in splits.items():
        if not rows:
            missing = f"{place}: too few rows"
            if place.is_dir():
                missing = f"{place / FILES[split]}: no rows of the task {task}"
            raise Problem(f"{missing} to use as {split}; give classify.tasks.{task} more rows")
    return splits


def classes(splits: dict[str, list[Labelled]], task: str) -> list[str]:
    """The labels of the training rows in order. Problem for one alone, for free text, for one that comes up later."""
    train = splits["train"]
    labels = sorted({row.label for row in train})
    if len(labels) < 2:
        raise Problem(f"classify.tasks.{task}: every training row has the label {excerpt(labels[0])}; nothing to learn")
    if 2 * len(labels) > len(train):
        raise Problem(
            f"classify.tasks.{task}: {len(labels)} labels in {len(train)} training rows are free text, not classes; "
            "use sft for them"
        )
    for row in (*splits["validation"], *splits["test"]):
        if row.label not in labels:
            expected = f"a label of the training rows ({excerpt(', '.join(labels))})"
            fail(f"{row.where}:label", expected, excerpt(row.label))
    return labels


def majority(rows: Sequence[Labelled]) -> str:
    """The most frequent label; of equally frequent ones the first by name."""
    counts = Counter(row.label for row in rows)
    return min(counts, key=lambda label: (-counts[label], label))


def _curated(path: Path, task: str, numbers: bool) -> Iterator[Labelled]:
    """The rows of a task among curated rows, each raw row once."""
    labels: dict[str, str] = {}  # id of a raw row -> its label
    for number, row in enumerate(read_parquet(path, ["row", "task", "text", "label"]), 1):
        if row["task"] != task:
            continue
        where = f"{path}:{number}"
        if row["row"] not in labels:
            labels[row["row"]] = row["label"]
            yield _labelled(where, row["row"], row, numbers)
        elif labels[row["row"]] != row["label"]:
            expected = f"{excerpt(labels[row['row']])}, as by another template of this row"
            fail(f"{where}:label", expected, excerpt(row["label"]))


def _table(path: Path, numbers: bool) -> Iterator[Labelled]:
    """The rows of a table of texts and labels."""
    for number, row in read_table(path):
        where = f"{path}:{number}"
        for name in ("text", "label"):
            if name not in row:
                fail(f"{where}:{name}", "a column of this name", f"the columns {excerpt(', '.join(row))}")
        yield _labelled(where, content_id(row["text"], row["label"]), row, numbers)


def _labelled(where: str, id: str, row: Row, numbers: bool) -> Labelled:
    text, label = row["text"], row["label"]
    if not isinstance(text, str):
        fail(f"{where}:text", "a text", f"{kind_of(text)} {excerpt(text)}")
    if not text.strip():
        fail(f"{where}:text", "a text", "an empty one")
    if numbers:
        return Labelled(where, id, text, str(label), _number(where, label))
    if isinstance(label, float) or not isinstance(label, (str, int)) or label == "":
        fail(f"{where}:label", "the name or the number of a class", f"{kind_of(label)} {excerpt(label)}")
    return Labelled(where, id, text, str(label), 0.0)


def _number(where: str, label: Any) -> float:
    """The label of a regression."""
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(label, bool) or not math.isfinite(value):
        fail(f"{where}:label", "a finite number, for a regression", f"{kind_of(label)} {excerpt(label)}")
    return value
