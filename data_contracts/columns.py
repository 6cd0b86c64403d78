"""Narrow columns derived from rows: what the contracts judge instead of the texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
from great_expectations.expectations import Expectation

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.sources import is_known_license

T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """A frame of derived columns with the column `id`, and what must hold for it: claim -> expectation."""

    frame: pd.DataFrame
    claims: Mapping[str, Expectation]


CONVERSATION = r"^(system )?(user assistant )*user$"  # roles alternate and the user speaks last


def roles(messages: list[dict[str, str]]) -> str:
    """'system user assistant user'"""
    return " ".join([message["role"] for message in messages])


def shortest(messages: list[dict[str, str]]) -> int:
    """Characters of the shortest message, without blanks around it; 0 if there is none."""
    return min([len(message["content"].strip()) for message in messages], default=0)


def prompt(messages: list[dict[str, str]]) -> int:
    """`prompt_key` as a number of 64 bits, which takes less memory."""
    return int.from_bytes(bytes.fromhex(prompt_key(messages)), "big", signed=True)


def prompts(conversations: Iterable[list[dict[str, str]]]) -> set[int]:
    return {prompt(messages) for messages in conversations}


def seen(values: Iterable[T], elsewhere: Set[T]) -> list[str]:
    """'seen' or 'new' per value: Great Expectations takes half a minute over a set of 30,000 values."""
    return ["seen" if value in elsewhere else "new" for value in values]


def fit(tokens: int, max_length: int | None) -> str:
    return "fits" if max_length is None or tokens <= max_length else "too long"


def license(identifier: str) -> str:
    return "known" if is_known_license(identifier) else "unknown"
