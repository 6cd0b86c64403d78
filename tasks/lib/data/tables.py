"""Files of rows as they are handed in: JSONL, JSON, CSV, TSV (also gzipped), Parquet -> (row number, row).

Reads defensively: lines and documents are bounded, broken text is a Problem that names file and row. What the
values may be is checked by rows.read_table.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.lib.data.privacy import excerpt
from tasks.lib.stage import Problem

Row = dict[str, Any]

MAX_ROW_BYTES = 16 * 2**20  # a longer row is a broken file, not an instruction
MAX_DOCUMENT_BYTES = 512 * 2**20  # a JSON list is parsed as a whole; larger data belongs in JSONL
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 200  # text packs 3 to 20 times; 200 times is a gzip bomb


def fail(where: str, expected: str, found: str) -> NoReturn:
    """Raise the Problem of the reader: `where` is file:row or file:row:field."""
    raise Problem(f"{where}: expected {expected}, found {found}")


def kind_of(value: Any) -> str:
    """The name of a value's type as a message shows it."""
    return "null" if value is None else type(value).__name__


class RepeatedKey(dict[str, Any]):
    """A JSON object in which `key` stood twice. json.loads would keep the last one without a word."""

    key: str


def _pairs(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    names = [name for name, _ in pairs]
    repeated = RepeatedKey(row)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 20 else math.inf  # int() of a million digits takes minutes


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer)


def _parsed(path: Path, first_line: int, text: str, is_last: bool) -> Any:
    """The value of a JSON text that begins at line `first_line` of the file."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        is_cut = is_last and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"))
        rest = text[error.pos : error.pos + 200].strip()
        found = f"{error.msg[0].lower()}{error.msg[1:]} at column {error.colno}: {excerpt(rest)}"
        fail(
            f"{path}:{first_line + error.lineno - 1}",
            "valid JSON",
            found + " (is the file cut off?)" * is_cut,
        )
    except RecursionError:
        fail(f"{path}:{first_line}", "JSON of a sane depth", "hundreds of nested brackets")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decoded lines with their numbers, each and together bounded, whatever the file holds."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        limit = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
        total = number = 0
        try:
            while line := stream.readline(MAX_ROW_BYTES + 1):
                number, total = number + 1, total + len(line)
                where = f"{path}:{number}"
                if len(line) > MAX_ROW_BYTES:
                    fail(where, f"a line of at most {MAX_ROW_BYTES:,} bytes", "a longer one")
                if packed and total > limit:
                    fail(where, f"at most {BOMB_RATIO} times the packed size", "more: a gzip bomb?")
                yield number, _decoded(where, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            fail(f"{path}:{number + 1}", "a whole gzip file", excerpt(str(error), 60))


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(where, "UTF-8 text", f"the byte 0x{line[error.start]:02x} at column {error.start + 1}")


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path):
        if not line.strip():
            fail(f"{path}:{number}", "a JSON object", "an empty line")
        yield number, _object(path, number, _parsed(path, number, line, is_last=not line.endswith("\n")))


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    lines, size = [], 0
    for number, line in _lines(path):
        lines.append(line)
        size += len(line)
        if size > MAX_DOCUMENT_BYTES:
            limit = f"a JSON document of at most {MAX_DOCUMENT_BYTES:,} characters"
            fail(f"{path}:{number}", limit, "a longer one; write it as JSONL")
    if not lines:
        return
    document = _parsed(path, 1, "".join(lines), is_last=True)
    rows = document.get("examples") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        fail(
            str(path), 'a list of objects or {"examples": [...]}', f"{kind_of(document)} {excerpt(document)}"
        )
    for number, row in enumerate(rows, 1):
        yield number, _object(path, number, row)


def _object(path: Path, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return value
    fail(f"{path}:{number}", "a JSON object", f"{kind_of(value)} {excerpt(value)}")


def _separated(path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fail(where, "a row of separated values", f"{error} (a quote that is not closed?)")
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not all(header):
                fail(where, "a header of distinct names", excerpt(delimiter.join(header)))
        elif len(cells) != len(header):
            fail(where, f"{len(header)} fields", f"{len(cells)}: {excerpt(delimiter.join(cells))}")
        else:
            yield int(where.rpartition(":")[2]), dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        fail(f"{path}:{number + 1}", "a whole Parquet file", excerpt(str(error), 60))


FORMATS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": lambda path: _separated(path, ","),
    "tsv": lambda path: _separated(path, "\t"),
    "parquet": _parquet,
}
