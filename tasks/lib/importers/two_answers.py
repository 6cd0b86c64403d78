"""Which two answers a task shows, and which of them a word names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.lib.stage import Problem

PARTNERS = {"a": "b", "1": "2", "left": "right", "first": "second"}
TIES = ("tie", "tied", "equal", "same", "both", "neither", "draw")


def two_fields(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of text fields whose names differ only in a/b, 1/2, left/right or first/second at the end."""
    found = []
    for name in row:
        if match := re.fullmatch(r"(.*?)(a|1|left|first)", name, re.IGNORECASE):
            other = PARTNERS[match[2].lower()]
            partner = match[1] + (other.upper() if match[2].isupper() else other)
            if isinstance(row[name], str) and isinstance(row.get(partner), str):
                found.append((name, partner))
    return [pair for pair in found if not {"model", "id", "name", "source"} & set(pair[0].lower().split("_"))]


def two_answers(where: str, row: Mapping[str, Any]) -> list[str]:
    """The texts of the one pair of answers that a task has; Problem when there is none or several."""
    pairs = two_fields(row)
    if len(pairs) != 1:
        raise Problem(f"{where}:data: expected two answers such as response_a and response_b, found {', '.join(row)}")
    return [row[name] for name in pairs[0]]


def of_word(word: str, row: Mapping[str, Any]) -> list[int] | None:
    """The ranks that a verdict such as `b`, `response_b`, `Response B`, `left` or `tie` gives the two
    answers of `row`; None if the word names neither."""
    said = re.sub(r"[\W_]+", " ", word).strip().lower()
    if said.split(" ")[:1] and said.split(" ")[0] in TIES:
        return [0, 0]
    names = two_fields(row)
    for side, options in enumerate(((*PARTNERS,), (*PARTNERS.values(),))):
        fields = [re.sub(r"[\W_]+", " ", pair[side]).strip().lower() for pair in names]
        if said in options or said in fields:
            return [0, 1] if side == 0 else [1, 0]
    return None
