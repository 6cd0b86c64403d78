"""What every reader of rows shares: the type of a row, and the Problem that says what is wrong with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | Problem]]  # with their numbers; a row that is broken by itself is its Problem


def fail(where: str, expected: str, found: str) -> NoReturn:
    """Raise the Problem of the reader: `where` is file:row or file:row:field."""
    raise Problem(f"{where}: expected {expected}, found {found}")


def kind_of(value: Any) -> str:
    """The name of a value's type as a message shows it."""
    if value is None:
        return "null"
    return type(value).__name__
