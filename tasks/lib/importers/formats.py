"""The formats of preference data: one table of their names, of how their rows look, and of how they are read.

To add a format, write its importer in a file of its own (a predicate on rows and a reader, see rankings.py) and give it
a line in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tasks.lib.data.rows import Row, read_table
from tasks.lib.importers import (
    argilla,
    hh_rlhf,
    labelstudio,
    listwise,
    mt_bench,
    openassistant,
    pairwise,
    ratings,
    ultrafeedback,
)
from tasks.lib.importers.rankings import Dropped, Export, Ranking
from tasks.lib.importers.ratings import Rating
from tasks.lib.importers.two_answers import field_pairs
from tasks.lib.stage import Problem

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz")


class Format(NamedTuple):
    """A kind of rows and its importer."""

    name: str  # as preferences.formats states it
    matches: Callable[[Row], bool]  # whether a row looks like one of this format
    read: Callable[[Export], Iterator[Ranking | Dropped | Rating]]


FORMATS = (  # a row is of the first format that it matches: the narrow ones come before the wide ones
    Format("labelstudio", labelstudio.is_task, labelstudio.read),
    Format("openassistant", openassistant.is_tree, openassistant.trees),
    Format("messages", openassistant.is_message, openassistant.messages),
    Format("argilla", argilla.is_record, argilla.read),
    Format("hh", hh_rlhf.is_transcript, hh_rlhf.read),
    Format("pairs", pairwise.is_pair, pairwise.pairs),
    Format("verdicts", mt_bench.is_verdict, mt_bench.verdicts),
    Format("arena", mt_bench.is_vote, mt_bench.arena),
    Format("outputs", pairwise.is_output, pairwise.outputs),
    Format("ultrafeedback", ultrafeedback.is_instruction, ultrafeedback.read),
    Format("rankings", listwise.is_ranking, listwise.read),
    Format("scores", ratings.is_score, ratings.scores),
    Format("choices", pairwise.is_choice, pairwise.choices),
    Format("thumbs", ratings.is_thumb, ratings.thumbs),
)


def read_export(
    path: Path, *, format: str | None = None, buckets: Sequence[str] = (), untouched_seconds: float = 5.0
) -> Iterator[Ranking | Dropped]:
    """Everything that one export file holds; ratings of single answers joined to rankings.

    The first row tells the format; `format` states it. `buckets` and `untouched_seconds`: see Export. A file of
    no known format, of another one than is stated, or with a row of another one is a Problem that says why.
    """
    names = [known.name for known in FORMATS]
    if format and format not in names:
        raise Problem(f"{path}: {format} is not a format of preferences; known: {', '.join(names)}")
    rows = read_table(path)
    first = next(rows)
    recognised = format_of(path, first[1])
    if format and format != recognised.name:
        raise Problem(f"{path}: is stated to be {format}, but its rows look like {recognised.name}")
    export = Export(path, _rows_of_one_format(path, recognised, chain([first], rows)), buckets, untouched_seconds)
    return ratings.ranked(recognised.read(export))


def has_no_order(path: Path) -> bool:
    """Whether the rows of a file are of no format of preferences, such as HelpSteer's ratings by attribute."""
    _, first = next(read_table(path))
    return _recognised(first) is None


def format_of(path: Path, row: Row) -> Format:
    """The format of a row, by its fields. Raises Problem naming the file and why nothing fits."""
    format = _recognised(row)
    if format is None:
        why = _why_unknown(row)
        raise Problem(f"{path}: expected preferences (docs/annotation.md lists the formats), found {why}")
    return format


def _recognised(row: Row) -> Format | None:
    if labelstudio.is_json_min(row):  # else its columns would look like those of `choices`
        return None
    for format in FORMATS:
        if format.matches(row):
            return format
    return None


def _rows_of_one_format(path: Path, format: Format, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[str, Row]]:
    """(where, row) of rows that are all of the first row's format: a file of two formats is two files by mistake.

    Argilla's are let through: its records without responses look like any row.
    """
    for line, row in rows:
        if format.name != "argilla" and _recognised(row) is not format:
            raise Problem(f"{path}:{line}: expected a row of {format.name} like the first, found {', '.join(row)}")
        yield f"{path}:{line}", row


def _why_unknown(row: Row) -> str:
    """What a row of no known format looks like instead."""
    names = row.keys()
    fields = f"rows with the fields {', '.join(list(row)[:8])}"
    if labelstudio.is_json_min(row):
        return "Label Studio's JSON-MIN or CSV, which loses what was cancelled; export as JSON"
    if {"text", "annotations"} <= names:
        return "a doccano export, which has texts but no preferences"
    if isinstance(row.get("data"), dict):
        return "Label Studio tasks without annotations: nobody has ranked them yet"
    if field_pairs(row):
        return f"{fields}: two answers, but no field that says which is better"
    if names & {"image", "image_url", "bbox"}:
        return f"{fields}: images"
    if "label" in names:
        return f"{fields}: labels of single texts, no preferences between answers"
    return fields
