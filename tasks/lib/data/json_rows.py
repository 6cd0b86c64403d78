"""Rows of JSONL and JSON files, a value at a time. Reads defensively: lines and documents are bounded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.row_problems import Row, Rows, fail, kind_of
from tasks.lib.data.text_files import MAX_ROW_BYTES, decoded, lines, text_pieces
from tasks.lib.stage import Problem

MAX_DOCUMENT_BYTES = 512 * 2**20  # a JSON object is parsed as a whole; more belongs in a list or in JSONL


class RepeatedKey(dict[str, Any]):
    """A JSON object that has `key` twice. json.loads would keep the last one without a word."""

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
    if len(digits) > 20:
        return math.inf  # int() of a million digits takes minutes
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer)
_BLANKS = re.compile(r"[ \t\r\n]*")
_END = object()  # of a list


def read_jsonl(path: Path) -> Rows:
    """An object per line."""
    for number, line in lines(path):
        try:
            text = decoded(f"{path}:{number}", line)
            if not text.strip():
                fail(f"{path}:{number}", "a JSON object", "an empty line")
            value = text.rstrip("\n")  # an error at its end is on this line, not on the next
            yield number, _object(path, number, _parsed(path, number, value, is_last=value == text))
        except Problem as problem:
            yield number, problem


def read_json(path: Path) -> Rows:
    """A list object by object; an object that holds the list under `examples` as a whole."""
    pieces = text_pieces(path)
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


def _object(path: Path, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return value
    fail(f"{path}:{number}", "a JSON object", f"{kind_of(value)} {excerpt(value)}")


def _parsed(path: Path, first_line: int, text: str, is_last: bool) -> Any:
    """The value of a JSON text that begins at line `first_line` of the file, and with `is_last` ends it."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        _fail_syntax(path, error, first_line, 1, is_last)
    except RecursionError:
        _fail_depth(path, first_line)


def _examples(path: Path, text: str, pieces: Iterator[str]) -> list[Any]:
    """The rows of a document that is no list."""
    for piece in pieces:
        text += piece
        if len(text) > MAX_DOCUMENT_BYTES:
            limit = f"a JSON object of at most {MAX_DOCUMENT_BYTES:,} characters"
            fail(f"{path}:{text.count(chr(10)) + 1}", limit, "a longer one; write it as a list, or as JSONL")
    if not text:
        return []
    document = _parsed(path, 1, text, is_last=True)
    rows = document
    if isinstance(document, dict):
        rows = document.get("examples")
    if isinstance(rows, list):
        return rows
    fail(str(path), 'a list of objects or {"examples": [...]}', f"{kind_of(document)} {excerpt(document)}")


@dataclass
class _Window:
    """What was read of a file and not yet parsed; it begins at this line and column of the file."""

    text: str
    line: int = 1
    column: int = 1

    def move(self, place: int, more: str) -> None:
        """Let it begin at `place` of the text, and go on with `more`."""
        parsed = self.text[:place]
        self.line += parsed.count("\n")
        if "\n" in parsed:
            self.column = 1
        self.column += len(parsed) - parsed.rfind("\n") - 1
        self.text = self.text[place:] + more


def _elements(path: Path, text: str, pieces: Iterator[str]) -> Iterator[Any]:
    """The values of the JSON list with which a text and its further pieces begin.

    A value that is cut off where the window ends is parsed again with one more piece.
    """
    window = _Window(text)
    place, is_first = text.index("[") + 1, True
    while True:
        try:
            value, end = _value_at(window.text, place, is_first)
        except json.JSONDecodeError as error:
            is_too_long = len(window.text) - place > MAX_ROW_BYTES
            more = "" if is_too_long else next(pieces, "")
            if not more:
                _fail_syntax(path, error, window.line, window.column, is_last=not is_too_long)
            window.move(place, more)
            place = 0
            continue
        except RecursionError:
            _fail_depth(path, window.line + window.text.count("\n", 0, place))
        place, is_first = end, False
        if value is _END:
            break
        yield value
    # nothing but blanks may follow
    place = _end_of_blanks(window.text, place)
    while place == len(window.text):
        more = next(pieces, "")
        if not more:
            return
        window.text += more
        place = _end_of_blanks(window.text, place)
    further = json.JSONDecodeError("Extra data", window.text, place)
    _fail_syntax(path, further, window.line, window.column, is_last=False)


def _value_at(text: str, place: int, is_first: bool) -> tuple[Any, int]:
    """The next value of a list and where it ends; _END for the bracket that closes the list.

    JSONDecodeError where there is neither, or a value that is cut off.
    """
    place = _end_of_blanks(text, place)
    if text.startswith("]", place):
        return _END, place + 1
    if not is_first:
        if not text.startswith(",", place):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        place = _end_of_blanks(text, place + 1)
    return _DECODER.raw_decode(text, place)


def _end_of_blanks(text: str, place: int) -> int:
    blanks = _BLANKS.match(text, place)
    assert blanks
    return blanks.end()


def _fail_syntax(path: Path, error: json.JSONDecodeError, line: int, column: int, is_last: bool) -> NoReturn:
    """Raise the Problem of a text that begins at this line and column, and with `is_last` ends with the file."""
    text = error.doc
    if error.lineno == 1:  # the text may begin in the middle of a line
        column += error.colno - 1
    else:
        column = error.colno
    rest = excerpt(text[error.pos : error.pos + 200].strip())
    found = f"{error.msg[0].lower()}{error.msg[1:]} at column {column}: {rest}"
    if is_last and (error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")):
        found += " (is the file cut off?)"
    fail(f"{path}:{line + error.lineno - 1}", "valid JSON", found)


def _fail_depth(path: Path, line: int) -> NoReturn:
    fail(f"{path}:{line}", "JSON of a sane depth", "hundreds of nested brackets")
