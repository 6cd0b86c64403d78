"""Which two answers a row shows in fields of their own, and which of them a word names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.lib.stage import Problem

PARTNERS = {"a": "b", "1": "2", "left": "right", "first": "second"}
TIES = ("tie", "tied", "equal", "same", "both", "neither", "draw")
NO_ANSWERS = {"model", "id", "name", "source"}  # words in the names of pairs of fields that hold no answers


def field_pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs of text fields whose names differ only in a/b, 1/2, left/right or first/second at the end."""
    pairs = []
    for name in row:
        match = re.fullmatch(r"(.*?)(a|1|left|first)", name, re.IGNORECASE)
        if match is None or NO_ANSWERS & set(name.lower().split("_")):
            continue
        start, first = match.groups()
        second = PARTNERS[first.lower()]
        partner = start + (second.upper() if first.isupper() else second)
        if isinstance(row[name], str) and isinstance(row.get(partner), str):
            pairs.append((name, partner))
    return pairs


def two_answers(where: str, row: Mapping[str, Any]) -> list[str]:
    """The texts of the one pair of answers that a row has; Problem when there is none or several."""
    pairs = field_pairs(row)
    if len(pairs) != 1:
        raise Problem(f"{where}:data: expected two answers such as response_a and response_b, found {', '.join(row)}")
    return [row[name] for name in pairs[0]]


def ranks_of_word(word: str, row: Mapping[str, Any]) -> list[int] | None:
    """The ranks that a verdict such as `b`, `response_b`, `Response B`, `left` or `tie` gives the two
    answers of `row`; None if the word names neither."""
    verdict = _plain(word)
    if verdict.split(" ")[0] in TIES:
        return [0, 0]
    pairs = field_pairs(row)
    if verdict in PARTNERS or verdict in [_plain(first) for first, _ in pairs]:
        return [0, 1]
    if verdict in PARTNERS.values() or verdict in [_plain(second) for _, second in pairs]:
        return [1, 0]
    return None


def _plain(name: str) -> str:
    """Lower case, with blanks in place of underscores and punctuation."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()
