"""Narrow columns derived from rows: what the contracts judge instead of the texts.

A function that takes rows (or values) gives one value per row, in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from great_expectations.expectations import Expectation

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row
from tasks.lib.data.sources import is_known_license

T = TypeVar("T")

CONVERSATION = r"^(system )?(user assistant )*user$"  # roles alternate and the user speaks last


@dataclass(frozen=True)
class Claims:
    """What must hold for rows: a frame of columns derived from them, `id` among them, and claim -> expectation."""

    frame: pd.DataFrame
    expectations: Mapping[str, Expectation]


def values(rows: Sequence[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def sizes(rows: Sequence[Row], name: str) -> list[int | None]:
    """How many items a list has; None for null."""
    return [None if row[name] is None else len(row[name]) for row in rows]


def different(rows: Sequence[Row], name: str) -> list[int | None]:
    """How many different items a list has; None for null."""
    return [None if row[name] is None else len(set(row[name])) for row in rows]


def characters(rows: Sequence[Row], name: str) -> list[int]:
    """Characters of a text without the blanks around it."""
    return [len(row[name].strip()) for row in rows]


def licenses(rows: Sequence[Row]) -> list[str]:
    return ["known" if is_known_license(row["license"]) else "unknown" for row in rows]


def roles(rows: Sequence[Row], name: str) -> list[str]:
    """'system user assistant user'"""
    return [roles_of(row[name]) for row in rows]


def roles_of(messages: list[dict[str, str]]) -> str:
    return " ".join([message["role"] for message in messages])


def shortest(rows: Sequence[Row], name: str) -> list[int]:
    """Characters of the shortest message, without blanks around it; 0 if there is none."""
    return [_shortest(row[name]) for row in rows]


def _shortest(messages: list[dict[str, str]]) -> int:
    return min([len(message["content"].strip()) for message in messages], default=0)


def prompts(rows: Sequence[Row], name: str) -> list[int]:
    """`prompt_key` as a number of 64 bits, which takes less memory."""
    return [int.from_bytes(bytes.fromhex(prompt_key(row[name])), "big", signed=True) for row in rows]


def seen(column: Iterable[T], elsewhere: Set[T]) -> list[str]:
    """'seen' or 'new' per value: Great Expectations takes half a minute over a set of 30,000 values."""
    return ["seen" if value in elsewhere else "new" for value in column]


def fits(lengths: Sequence[int], rows: Sequence[Row]) -> list[str]:
    """'fits' or 'too long' per row, by its number of tokens; a row without `max_length` fits."""
    fitting = []
    for length, row in zip(lengths, rows, strict=True):
        if row["max_length"] is None or length <= row["max_length"]:
            fitting.append("fits")
        else:
            fitting.append("too long")
    return fitting
