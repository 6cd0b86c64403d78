"""Text files, gzipped or not, line by line or in pieces: bounded in memory, whatever the file holds."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, cast

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.row_problems import fail

MAX_ROW_BYTES = 16 * 2**20  # a longer row is a broken file, not an instruction
PIECE_BYTES = 2**20
BOMB_BYTES, BOMB_RATIO = 64 * 2**20, 200  # text packs 3 to 20 times; 200 times is a gzip bomb
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers."""
    for number, line in enumerate(_pieces(path, lambda stream: stream.readline(MAX_ROW_BYTES + 1)), 1):
        if len(line) > MAX_ROW_BYTES:
            fail(f"{path}:{number}", f"a line of at most {MAX_ROW_BYTES:,} bytes", "a longer one")
        yield number, line


def decoded(where: str, line: bytes) -> str:
    """The text of a line; `where` is its place for a Problem."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(where, "UTF-8 text", f"the byte 0x{line[error.start]:02x} at column {error.start + 1}")


def text_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces, none of them empty."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    whole_lines = 0  # of the pieces before this one
    unfinished = 0  # their bytes of the line that goes on in this one
    for piece in chain(_pieces(path, lambda stream: stream.read(PIECE_BYTES)), [b""]):
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            # error.object is what the decoder kept of earlier pieces, then this piece
            place = error.start - len(error.object) + len(piece)  # in this piece; below 0: it began in an earlier one
            before = piece[: max(place, 0)]
            newlines = before.count(b"\n")
            column = place - before.rfind(b"\n")
            if not newlines:
                column = unfinished + place + 1
            found = f"the byte 0x{error.object[error.start]:02x} at column {column}"
            fail(f"{path}:{whole_lines + newlines + 1}", "UTF-8 text", found)
        if text:
            yield text
        whole_lines += piece.count(b"\n")
        if b"\n" in piece:
            unfinished = 0
        unfinished += len(piece) - piece.rfind(b"\n") - 1


def _pieces(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """What `read` takes from the file, unpacked, until there is no more: bounded, whatever the file holds."""
    with path.open("rb") as raw:
        stream: IO[bytes] = raw
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_packed:
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        limit = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
        size = whole_lines = 0
        try:
            while piece := read(stream):
                is_first = size == 0
                size += len(piece)
                if is_packed and size > limit:
                    expected = f"at most {BOMB_RATIO} times the packed size"
                    fail(f"{path}:{whole_lines + 1}", expected, "more: a gzip bomb?")
                whole_lines += piece.count(b"\n")
                if is_first:
                    piece = piece.removeprefix(BYTE_ORDER_MARK)
                yield piece
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            fail(f"{path}:{whole_lines + 1}", "a whole gzip file", excerpt(str(error), 60))
