"""Rows: a strict reader for what people hand in, and Parquet with fixed schemas between stages.

The reader never fills, widens or drops anything: what it does not accept is a Problem
`file:row:field: expected ..., found ...`. The row is the line where it starts in JSONL, CSV and TSV (as an
editor shows it), else its place in the list from 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any, cast, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.lib.data.json_rows import RepeatedKey
from tasks.lib.data.privacy import excerpt
from tasks.lib.data.row_problems import Row, fail, kind_of
from tasks.lib.data.tables import FORMATS, TEXT_FORMATS
from tasks.lib.stage import Problem, replaced

FieldType = type | GenericAlias

# the words of a source.yaml
TYPES: dict[str, FieldType] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "list[str]": list[str],
}
INT64 = range(-(2**63), 2**63)

MESSAGES = pa.list_(
    pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
)

ROLES = {  # a role as files and exports name it -> ours
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    """A column may be null only if its name ends in a question mark."""
    fields = [pa.field(name.rstrip("?"), kind, nullable=name.endswith("?")) for name, kind in columns]
    return pa.schema(fields)


INSTRUCTION = _schema(
    ("id", pa.string()),
    ("source", pa.string()),
    ("license", pa.string()),
    ("cluster", pa.string()),
    ("task", pa.string()),
    ("template", pa.string()),
    ("split", pa.string()),
    ("messages", MESSAGES),
    ("answer", pa.string()),
    ("choices?", pa.list_(pa.string())),  # null: the answer is free text
    ("label", pa.string()),  # the bare answer, without the closing
    ("measure", pa.string()),  # how an answer is compared with the label: exact, number ...; regex:PATTERN
    ("row", pa.string()),  # content id of the raw row: the renderings of one row share it
    ("text", pa.string()),  # the raw row without its label: what duplicates and contamination compare
)
CANDIDATE = _schema(
    ("id", pa.string()),
    ("prompt", MESSAGES),
    ("answers", pa.list_(pa.string())),
    ("instruction", pa.string()),  # id of the instruction row
    ("model", pa.string()),  # sha256 of the weights that answered
    ("sampling", pa.string()),  # JSON
)
RANKING = _schema(
    ("id", pa.string()),
    ("prompt", MESSAGES),
    ("answers", pa.list_(pa.string())),
    ("ranks", pa.list_(pa.int64())),  # 0 is best, equal is a tie
    ("annotator", pa.string()),
    ("strength?", pa.float64()),
    ("source", pa.string()),
    ("license", pa.string()),
)
RATING = _schema(
    ("id", pa.string()),
    ("prompt", MESSAGES),
    ("answer", pa.string()),
    ("attribute", pa.string()),
    ("value", pa.float64()),  # more is better; a thumb is 1 or 0
    ("annotator", pa.string()),
    ("source", pa.string()),
    ("license", pa.string()),
)
LEDGER = _schema(("id", pa.string()), ("rule", pa.string()), ("detail", pa.string()))


# json.dumps makes one each time: a third of an id
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def content_id(*parts: object) -> str:
    """16 hex digits of the SHA-256 of `parts` as JSON: equal content, equal id, on every machine."""
    return hashlib.sha256(_ENCODER.encode(parts).encode()).hexdigest()[:16]


def write_parquet(path: Path, rows: list[Row], schema: pa.Schema) -> None:
    """Write rows whole or not at all, equal rows as equal bytes. Other keys than the schema's are a bug."""
    names = set(schema.names)
    required = [field.name for field in schema if not field.nullable]
    for row in rows:
        if row.keys() != names:
            raise TypeError(f"{path}: a row's fields differ from the schema's: {sorted(names ^ row.keys())}")
        for name in required:
            if row[name] is None:
                raise TypeError(f"{path}: {name} of row {row.get('id')} is null")
    table = pa.Table.from_pylist(rows, schema=schema)
    with replaced(Path(path)) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=2**16)


def read_parquet(path: Path, columns: list[str] | None = None) -> list[Row]:
    """All rows of a Parquet file; a missing or damaged file, or a missing column, is a Problem."""
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(columns)
    except FileNotFoundError:
        raise Problem(f"{path} does not exist; run the stage that writes it") from None
    except (pa.ArrowException, OSError) as error:
        raise Problem(f"{path}: expected a Parquet file, found {excerpt(str(error), 80)}; write it again") from None
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise Problem(f"{path}: the columns {', '.join(sorted(missing))} are missing; write it again")
    return cast(list[Row], table.to_pylist())


def read_table(
    path: Path,
    fields: Mapping[str, FieldType] | None = None,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    bad: Callable[[Problem], None] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield (row number, row) of a file; `fields` (name -> type) must then be exactly the row's fields.

    Without `fields`, rows keep the types of the file (text in CSV). The format is `format`, or that of the
    file's name; `columns` name the cells of a CSV without a header. A UTF-8 byte-order mark at the start is
    skipped; all else that is not clean raises Problem, or, where one row alone is bad, goes to `bad`.
    """
    path = Path(path)
    form = format or format_of(path)
    _check_kind(path, form)
    count = 0
    for number, row in FORMATS[form](path, columns):
        count += 1
        try:
            if isinstance(row, Problem):
                raise row
            clean = _clean(f"{path}:{number}", row, fields, form in TEXT_FORMATS)
        except Problem as problem:
            if bad is None:
                raise
            bad(problem)
            continue
        yield number, clean
    if not count:
        fail(str(path), "rows", "an empty file")


def _check_kind(path: Path, form: str) -> None:
    """A format that is not known, a file for a folder or the other way round, or nothing at all is a Problem."""
    if form not in FORMATS:
        fail(str(path), f"a format of {', '.join(FORMATS)}", excerpt(form))
    if form == "dataset" and not path.is_dir():
        fail(str(path), "a folder saved by datasets' save_to_disk", "a file" if path.exists() else "nothing")
    if form != "dataset" and not path.is_file():
        fail(str(path), "a file of rows", "a folder" if path.exists() else "nothing")


def _clean(where: str, row: Row, fields: Mapping[str, FieldType] | None, is_text: bool) -> Row:
    if fields is not None:
        return _typed(where, row, fields, is_text)
    _check_value(where, row)
    for name, value in row.items():
        _check_value(f"{where}:{_name(name)}", value)
    return row


def format_of(path: Path) -> str:
    """The format by the file's name, looking through .gz; a folder is a saved data set."""
    if path.is_dir():
        return "dataset"
    last = ""
    for suffix in path.suffixes:
        if suffix.lower() != ".gz":
            last = suffix.lower().lstrip(".")
    return {"ndjson": "jsonl", "pq": "parquet", "feather": "arrow"}.get(last, last)


def _check_value(where: str, value: Any) -> None:
    """Refuse what no later step can carry: NUL, lone surrogates, numbers not finite or not 64-bit."""
    if isinstance(value, str):
        if "\0" in value:
            fail(where, "text without NUL characters", excerpt(value))
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            fail(where, "Unicode text", f"a lone surrogate in {excerpt(value)}")
    elif isinstance(value, float):
        if math.isnan(value):
            fail(where, "a finite 64-bit number", "NaN")
        if math.isinf(value):
            fail(where, "a finite 64-bit number", "a larger one")
    elif isinstance(value, int):
        if value not in INT64:
            fail(where, "a 64-bit integer", excerpt(value))
    elif isinstance(value, RepeatedKey):
        fail(f"{where}:{_name(value.key)}", "each key once", "it twice")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_value(where, key)
            _check_value(where, item)
    elif isinstance(value, list):
        for item in value:
            _check_value(where, item)


def _typed(where: str, row: Row, fields: Mapping[str, FieldType], is_text: bool) -> Row:
    """The row with exactly these fields, each of its type."""
    if isinstance(row, RepeatedKey):
        _check_value(where, row)
    for name, kind in fields.items():
        if name not in row:
            fail(f"{where}:{name}", word_of(kind), f"no such field among {excerpt(', '.join(row), 60)}")
    if len(row) > len(fields):
        for name in row:
            if name not in fields:
                fail(f"{where}:{_name(name)}", f"only the fields {', '.join(fields)}", "one more")
    return {name: _value(f"{where}:{name}", row[name], kind, is_text) for name, kind in fields.items()}


def _value(where: str, value: Any, kind: FieldType, is_text: bool) -> Any:
    _check_value(where, value)
    if is_text and kind is not str:
        value = _from_text(value, kind)
    if kind is float and type(value) is int:
        value = float(value)
    if value is None:
        fail(where, word_of(kind), "null")
    if not _is_of(value, kind):
        fail(where, word_of(kind), f"{kind_of(value)} {excerpt(value)}")
    if is_text:
        _check_value(where, value)  # a cell of CSV is a number only now
    return value


def _is_of(value: Any, kind: FieldType) -> bool:
    """Whether a value is of a type, such as int or list[str]; True and False are no numbers."""
    outer: Any = get_origin(kind) or kind
    if not isinstance(value, outer) or (kind is int and isinstance(value, bool)):
        return False
    for of_items in get_args(kind):  # one for a list, none for other types
        for item in value:
            if type(item) is not of_items:
                return False
    return True


def _from_text(text: str, kind: FieldType) -> Any:
    """A cell of CSV as a number or a truth value; the text itself if it is none."""
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        return int(text)
    if kind is float and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return float(text)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text


def word_of(kind: FieldType) -> str:
    """The word of a source.yaml for a type."""
    for word, known in TYPES.items():
        if known == kind:
            return word
    return str(kind)


def _name(name: str) -> str:
    return excerpt(name)[1:-1]
