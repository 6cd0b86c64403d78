"""Files of rows as they are handed in: JSONL, JSON, CSV, TSV (also gzipped), Parquet, Arrow -> (row number, row).

Reads defensively: lines and documents are bounded. A row that is broken by itself is yielded as the Problem that
names it, so that the reader can set it aside and go on; a file that cannot be read on raises. What the values may
be is checked by rows.read_table.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.lib.data.privacy import excerpt
from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | Problem]]

MAX_ROW_BYTES = 16 * 2**20  # a longer row is a broken file, not an instruction
MAX_DOCUMENT_BYTES = 512 * 2**20  # a JSON object is parsed as a whole; more belongs in a list or in JSONL
PIECE_BYTES = 2**20  # of a JSON document
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
_BLANKS = re.compile(r"[ \t\r\n]*")


def _parsed(path: Path, first_line: int, text: str, is_last: bool) -> Any:
    """The value of a JSON text that begins at line `first_line` of the file."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        _fail_syntax(path, error, first_line, 1, is_last)
    except RecursionError:
        fail(f"{path}:{first_line}", "JSON of a sane depth", "hundreds of nested brackets")


def _fail_syntax(path: Path, error: json.JSONDecodeError, line: int, column: int, is_last: bool) -> NoReturn:
    """Raise the Problem of a text that begins at this line and column, and with `is_last` ends with the file."""
    text = error.doc
    is_cut = is_last and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"))
    place = error.colno + (column - 1) * (error.lineno == 1)
    rest = excerpt(text[error.pos : error.pos + 200].strip())
    found = f"{error.msg[0].lower()}{error.msg[1:]} at column {place}: {rest}"
    fail(f"{path}:{line + error.lineno - 1}", "valid JSON", found + " (is the file cut off?)" * is_cut)


def _pieces(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """What `read` takes from the file, unpacked, until there is no more: bounded, whatever the file holds."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        limit = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
        total = lines = 0
        try:
            while piece := read(stream):
                total += len(piece)
                if packed and total > limit:
                    expected = f"at most {BOMB_RATIO} times the packed size"
                    fail(f"{path}:{lines + 1}", expected, "more: a gzip bomb?")
                yield piece.removeprefix(b"\xef\xbb\xbf") if total == len(piece) else piece
                lines += piece.count(b"\n")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            fail(f"{path}:{lines + 1}", "a whole gzip file", excerpt(str(error), 60))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers."""
    for number, line in enumerate(_pieces(path, lambda stream: stream.readline(MAX_ROW_BYTES + 1)), 1):
        if len(line) > MAX_ROW_BYTES:
            fail(f"{path}:{number}", f"a line of at most {MAX_ROW_BYTES:,} bytes", "a longer one")
        yield number, line


def _text(path: Path) -> Iterator[str]:
    """The text of a file in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = before = 0  # whole lines so far, and bytes of the one that goes on
    for piece in chain(_pieces(path, lambda stream: stream.read(PIECE_BYTES)), [b""]):
        try:
            if text := decoder.decode(piece, final=not piece):
                yield text
        except UnicodeDecodeError as error:
            at = error.start - len(error.object) + len(piece)  # below 0: it began in another piece
            read = piece[: max(at, 0)]
            column = len(read) - read.rfind(b"\n") + (before + min(at, 0)) * (b"\n" not in read)
            found = f"the byte 0x{error.object[error.start]:02x} at column {column}"
            lines += read.count(b"\n")
            fail(f"{path}:{lines + 1}", "UTF-8 text", found)
        lines += piece.count(b"\n")
        before = len(piece) - piece.rfind(b"\n") - 1 + before * (b"\n" not in piece)


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(where, "UTF-8 text", f"the byte 0x{line[error.start]:02x} at column {error.start + 1}")


def _jsonl(path: Path) -> Rows:
    for number, line in _lines(path):
        try:
            text = _decoded(f"{path}:{number}", line)
            if not text.strip():
                fail(f"{path}:{number}", "a JSON object", "an empty line")
            value = text.rstrip("\n")  # an error at its end is on this line, not on the next
            yield number, _object(path, number, _parsed(path, number, value, is_last=value == text))
        except Problem as problem:
            yield number, problem


def _json(path: Path) -> Rows:
    """A list object by object; an object that holds the list under `examples` as a whole."""
    pieces = _text(path)
    start = next(pieces, "")
    if _BLANKS.sub("", start, count=1).startswith("["):
        values = _elements(path, start, pieces)
    else:
        values = iter(_examples(path, start, pieces))
    for number, value in enumerate(values, 1):
        try:
            yield number, _object(path, number, value)
        except Problem as problem:
            yield number, problem


def _examples(path: Path, text: str, pieces: Iterator[str]) -> list[Any]:
    for piece in pieces:
        text += piece
        if len(text) > MAX_DOCUMENT_BYTES:
            limit = f"a JSON object of at most {MAX_DOCUMENT_BYTES:,} characters"
            fail(f"{path}:{text.count(chr(10)) + 1}", limit, "a longer one; write it as a list, or as JSONL")
    if not text:
        return []
    document = _parsed(path, 1, text, is_last=True)
    rows = document.get("examples") if isinstance(document, dict) else document
    if isinstance(rows, list):
        return rows
    fail(str(path), 'a list of objects or {"examples": [...]}', f"{kind_of(document)} {excerpt(document)}")


def _elements(path: Path, text: str, pieces: Iterator[str]) -> Iterator[Any]:
    """The values of the JSON list with which a text and its further pieces begin.

    `text` is what was read and not yet parsed: it begins at a line and column, and grows while a value is cut off.
    """
    line, column, at, is_first = 1, 1, text.index("[") + 1, True
    while True:
        start = at
        try:
            at = _end_of_blanks(text, at)
            if text.startswith("]", at):
                break
            if not is_first:
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
                at = _end_of_blanks(text, at + 1)
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            more = next(pieces, "") if len(text) - start <= MAX_ROW_BYTES else ""
            if not more:
                _fail_syntax(path, error, line, column, is_last=len(text) - start <= MAX_ROW_BYTES)
            read = text[:start]
            line += read.count("\n")
            column = len(read) - read.rfind("\n") + (column - 1) * ("\n" not in read)
            text, at = text[start:] + more, 0
        except RecursionError:
            place = line + text.count("\n", 0, start)
            fail(f"{path}:{place}", "JSON of a sane depth", "hundreds of nested brackets")
        else:
            is_first = False
            yield value
    at = _end_of_blanks(text, at + 1)
    while at == len(text) and (more := next(pieces, "")):
        text += more
        at = _end_of_blanks(text, at)
    if at < len(text):
        _fail_syntax(path, json.JSONDecodeError("Extra data", text, at), line, column, is_last=False)


def _end_of_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found
    return found.end()


def _object(path: Path, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return value
    fail(f"{path}:{number}", "a JSON object", f"{kind_of(value)} {excerpt(value)}")


def _separated(path: Path, delimiter: str, columns: Sequence[str] | None) -> Rows:
    """`columns` name the cells of a file without a header."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = (_decoded(f"{path}:{number}", line) for number, line in _lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header = list(columns) if columns else None
    while True:
        number = reader.line_num + 1
        where = f"{path}:{number}"
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
            found = f"{len(cells)}: {excerpt(delimiter.join(cells))}"
            yield number, Problem(f"{where}: expected {len(header)} fields, found {found}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(4096))
    except (pa.ArrowException, OSError) as error:
        fail(str(path), "a whole Parquet file", excerpt(str(error), 60))


def _arrow(path: Path) -> Rows:
    yield from _numbered(_arrow_batches(path))


def _dataset(path: Path) -> Rows:
    """A folder that `datasets` saved to disk: the files that its state.json names, in that order."""
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
        fail(str(path), f"one split of it ({splits})", "a folder of splits")
    state = path / "state.json"
    if not state.is_file():
        fail(str(path), "a folder saved by datasets' save_to_disk", "no state.json")
    try:
        files = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        inside = all(isinstance(name, str) and Path(name).name == name for name in files)
    except (ValueError, LookupError, TypeError):
        inside = False
    if not inside:
        fail(str(state), "the names of its files under _data_files", "something else")
    yield from _numbered(batch for name in files for batch in _arrow_batches(path / name))


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file or stream, mapped: only what is read comes into memory."""
    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                batch.validate(full=True)  # offsets that point outside the file would end the process
                for start in range(0, batch.num_rows, 4096):
                    yield batch.slice(start, 4096)
    except (pa.ArrowException, OSError) as error:
        fail(str(path), "a whole Arrow file or stream", excerpt(str(error), 60))


def _numbered(batches: Iterator[pa.RecordBatch]) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row


TEXT_FORMATS = ("csv", "tsv")  # their cells have no types
FORMATS: dict[str, Callable[[Path, Sequence[str] | None], Rows]] = {
    "jsonl": lambda path, _: _jsonl(path),
    "json": lambda path, _: _json(path),
    "csv": lambda path, columns: _separated(path, ",", columns),
    "tsv": lambda path, columns: _separated(path, "\t", columns),
    "parquet": lambda path, _: _parquet(path),
    "arrow": lambda path, _: _arrow(path),
    "dataset": lambda path, _: _dataset(path),
}
