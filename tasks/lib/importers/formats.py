"""Preference data of several tools, told apart by what their rows look like, or named.

labelstudio    full JSON export: pairwise, ranker, bucket ranker, ratings, choices
argilla        records: ranking, label and rating questions
openassistant  message trees, nested or a row per message; the ranked replies to one message are a ranking
rankings       {prompt, answers, ranks | scores} and optionally annotator, strength, source, license
pairs, hh, choices, outputs, verdicts, arena   one verdict per row (pairs.py)
ultrafeedback, thumbs, scores                  ratings of single answers (ratings.py)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from tasks.lib.data.rows import read_table
from tasks.lib.importers import argilla, labelstudio, ratings
from tasks.lib.importers import pairwise as pairs
from tasks.lib.importers.openassistant import messages, trees
from tasks.lib.importers.rankings import Dropped, Judgement, prompt_of
from tasks.lib.importers.ratings import Rating, number, ranked, ranks_of
from tasks.lib.importers.two_answers import two_fields
from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
Found = Iterator[Judgement | Dropped | Rating]
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")
ANSWERS, SCORES = ("answers", "responses", "generations"), ("scores", "ratings")
ADDED = {"candidate", "seconds", "at", "skipped"}  # by annotation_page.py
KNOWN = {"id", "prompt", "messages", *ANSWERS, "ranks", "annotator", "strength", "source", "license", *ADDED}


def read_export(
    path: Path, *, format: str | None = None, buckets: Sequence[str] = (), untouched_seconds: float = 5.0
) -> Iterator[Judgement | Dropped]:
    """Everything that one export file holds; ratings of single answers joined to rankings.

    `format` is found by the first row unless it is stated. A file of no known format, or with a row of
    another one, is a Problem that says why.
    """
    readers: dict[str, Callable[[Path, Rows], Found]] = {
        "labelstudio": lambda path, rows: labelstudio.read(
            path, rows, buckets=buckets, untouched_seconds=untouched_seconds
        ),
        "argilla": argilla.read,
        "openassistant": trees,
        "messages": messages,
        "rankings": _rankings,
        "pairs": pairs.pairs,
        "hh": pairs.transcripts,
        "choices": pairs.choices,
        "outputs": pairs.outputs,
        "verdicts": pairs.verdicts,
        "arena": pairs.arena,
        "ultrafeedback": ratings.completions,
        "thumbs": ratings.thumbs,
        "scores": ratings.scores,
    }
    if format and format not in readers:
        raise Problem(f"{path}: {format} is no format of preferences; known: {', '.join(readers)}")
    rows = read_table(path)
    first = next(rows)
    name = format_of(path, first[1])
    if format and format != name:
        raise Problem(f"{path}: is stated to be {format}, but its rows look like {name}")
    return ranked(readers[name](path, _shaped(path, name, chain([first], rows))))


def has_no_order(path: Path) -> bool:
    """Whether the rows of a file are of no format of preferences, such as HelpSteer's ratings by attribute."""
    return _format_of(next(read_table(path))[1]) is None


def format_of(path: Path, row: Mapping[str, Any]) -> str:
    """The format of a row, by its fields. Raises Problem naming the file and why nothing fits."""
    if format := _format_of(row):
        return format
    names = row.keys()
    why = f"rows with the fields {', '.join(list(row)[:8])}"
    if {"annotator", "annotation_id"} <= names:
        why = "Label Studio's JSON-MIN or CSV, which loses what was cancelled; export as JSON"
    elif {"text", "annotations"} <= names:
        why = "a doccano export, which has texts but no preferences"
    elif isinstance(row.get("data"), dict):
        why = "Label Studio tasks without annotations: nobody has ranked them yet"
    elif two_fields(row):
        why = f"{why}: two answers, but no field that says which is better"
    elif names & {"image", "image_url", "bbox"}:
        why = f"{why}: images"
    elif "label" in names:
        why = f"{why}: labels of single texts, no preferences between answers"
    raise Problem(f"{path}: expected preferences (docs/annotation.md lists the formats), found {why}")


def _format_of(row: Mapping[str, Any]) -> str | None:
    names = row.keys()
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        return "labelstudio"
    if {"annotation_id", "annotator"} <= names:
        return None
    if isinstance(row.get("prompt"), dict) and "message_tree_id" in row:
        return "openassistant"
    if {"message_id", "parent_id", "text", "role"} <= names:
        return "messages"
    if argilla.is_record(row):
        return "argilla"
    if {"chosen", "rejected"} <= names:
        has_prompt = {"prompt", "messages", "conversations", "instruction", "question"} & names
        is_transcript = not has_prompt and "\n\nHuman:" in str(row["chosen"])
        return "hh" if is_transcript else "pairs" if has_prompt or isinstance(row["chosen"], list) else None
    if {"g1_winner", "g2_winner"} <= names:
        return "verdicts"
    if {"conversation_a", "conversation_b", "winner"} <= names:
        return "arena"
    if {"output_1", "output_2"} <= names and {"label", "preference"} & names:
        return "outputs"
    if isinstance(row.get("completions"), list) and {"instruction", "prompt"} & names:
        return "ultrafeedback"
    if {"ranks", *SCORES} & names and {*ANSWERS} & names:
        return "rankings"
    has_answer = {*ratings.ANSWERS} & names
    if has_answer and {"score", "rank"} & names:
        return "scores"
    if two_fields(row) and {*pairs.VERDICTS, "preference_strength"} & names:
        return "choices"
    label = row.get("label", row.get("kto_tag"))
    is_thumb = isinstance(label, bool) or str(label).lower() in ("true", "false")
    return "thumbs" if is_thumb and (has_answer or {"messages", "conversations"} & names) else None


def _shaped(path: Path, format: str, rows: Rows) -> Rows:
    """The rows, each of the first row's format: a file of two formats is two files by mistake.

    Argilla's are let through: its records without responses look like any row.
    """
    for line, row in rows:
        if format != "argilla" and _format_of(row) != format:
            raise Problem(f"{path}:{line}: expected a row of {format} like the first, found {', '.join(row)}")
        yield line, row


# --- rankings ---


def _rankings(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for line, row in rows:
        where = f"{path}:{line}"
        if row.get("skipped"):
            yield Dropped(where, "cancelled", "the annotator skipped the prompt")
            continue
        name = next(name for name in ANSWERS if name in row)
        answers = _list(row[name])
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise Problem(f"{where}:{name}: expected a list of texts, found {str(answers)[:60]!r}")
        if "ranks" in row and (extra := row.keys() - KNOWN):  # this project's own format: a typo is a mistake
            raise Problem(f"{where}:{min(extra)}: is no field of a ranking ({', '.join(sorted(KNOWN))})")
        ranks = _ranks(where, row)
        if len(ranks) != len(answers):
            raise Problem(f"{where}:ranks: expected one per answer, {len(answers)}, found {len(ranks)}")
        strength = row.get("strength")
        yield Judgement(
            where,
            prompt_of(where, row),
            answers,
            ranks,
            str(row.get("annotator") or path.stem),
            str(row.get("source") or path.stem),
            row.get("license") or None,
            None if strength in (None, "") else number(f"{where}:strength", strength),
            (str(row.get("at") or ""), 0),
        )


def _ranks(where: str, row: Row) -> list[int]:
    """The ranks of a row, as they are or by its scores (larger is better)."""
    if "ranks" not in row:
        name = next(name for name in SCORES if name in row)
        scores = _list(row[name])
        if not isinstance(scores, list):
            raise Problem(f"{where}:{name}: expected a list of numbers, found {str(scores)[:60]!r}")
        return ranks_of([number(f"{where}:{name}", score) for score in scores])
    ranks = _list(row["ranks"])
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise Problem(f"{where}:ranks: expected whole numbers from 0 (best), found {str(ranks)[:60]!r}")
    return cast(list[int], ranks)


def _list(value: Any) -> Any:
    """A list, which a cell of a table holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
