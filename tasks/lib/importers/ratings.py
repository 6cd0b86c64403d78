"""Ratings of single answers become rankings: what one annotator gave to the answers of one prompt.

`thumbs` reads KTO rows, an answer with its label, true or false; a dialogue may replace prompt and answer:

    {"prompt": "Q", "completion": "Yes.", "label": true}

`scores` reads a row per answer with a score (larger is better) or a rank (smaller is better), as in a table:

    {"prompt": "Q", "answer": "Yes.", "score": 3.5, "annotator": "ada"}

Equal values are a tie. A prompt of which an annotator rated one answer alone is dropped (`too_few_answers`), and so is
the earlier of two ratings of one answer (`annotator_twice`). Nobody abstains: a row without a value is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import Dropped, Export, Messages, Ranking, field_of, messages_of, prompt_of
from tasks.lib.stage import Problem

ANSWERS = ("answer", "response", "completion")  # names of the field that holds one answer


@dataclass(frozen=True)
class Rating:
    """What one annotator gave to one answer; a larger value is better."""

    where: str
    prompt: Messages
    answer: str
    value: float
    annotator: str
    source: str
    license: str | None = None
    order: tuple[str, int] = ("", 0)  # of two ratings of the same answer the later counts


def ranked(imported: Iterable[Ranking | Dropped | Rating]) -> Iterator[Ranking | Dropped]:
    """Rankings as they are; the ratings of a prompt by an annotator as one ranking, equal values as ties."""
    groups: dict[tuple[str, str, str], dict[str, Rating]] = {}  # prompt, annotator and source -> answer -> rating
    for item in imported:
        if not isinstance(item, Rating):
            yield item
            continue
        group = groups.setdefault((prompt_key(item.prompt), item.annotator, item.source), {})
        earlier, later = group.get(item.answer), item
        if earlier is not None:
            if earlier.order > later.order:
                earlier, later = later, earlier
            yield Dropped(earlier.where, "annotator_twice", f"{later.where} rates the same answer")
        group[item.answer] = later
    for group in groups.values():
        ratings = list(group.values())
        first = ratings[0]
        if len(ratings) == 1:
            yield Dropped(first.where, "too_few_answers", "a rated answer without a rival")
            continue
        answers = [rating.answer for rating in ratings]
        ranks = ranks_of([rating.value for rating in ratings])
        order = max(rating.order for rating in ratings)
        yield Ranking(
            first.where, first.prompt, answers, ranks, first.annotator, first.source, first.license, order=order
        )


def ranks_of(values: list[float]) -> list[int]:
    """Ranks (0 best, equal = tie) of values of which the largest is best."""
    best_first = sorted(set(values), reverse=True)
    return [best_first.index(value) for value in values]


def number(where: str, value: Any) -> float:
    """A finite number, also as text (tables, the JSON of models); Problem otherwise."""
    try:
        result = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise Problem(f"{where}: expected a number, found {str(value)[:60]!r}")
    return result


def is_thumb(row: Row) -> bool:
    label = row.get("label", row.get("kto_tag"))
    has_answer = {*ANSWERS, "messages", "conversations"} & row.keys()
    return bool(has_answer) and (isinstance(label, bool) or str(label).lower() in ("true", "false"))


def is_score(row: Row) -> bool:
    return bool({*ANSWERS} & row.keys() and {"score", "rank"} & row.keys())


def thumbs(export: Export) -> Iterator[Rating]:
    """KTO rows. A prompt needs two rated answers before they say anything about each other."""
    for where, row in export.rows:
        label = row.get("label", row.get("kto_tag"))
        if isinstance(label, str) and label.lower() in ("true", "false"):
            label = label.lower() == "true"
        if not isinstance(label, bool):
            raise Problem(f"{where}:label: expected true or false, found {str(label)[:60]!r}")
        prompt, answer = prompt_and_answer(where, row)
        annotator, source = export.annotator_of(row), export.source_of(row)
        yield Rating(where, prompt, answer, float(label), annotator, source, row.get("license"))


def scores(export: Export) -> Iterator[Rating]:
    """A row per answer with its score (larger is better) or its rank (smaller is better)."""
    for where, row in export.rows:
        name, sign = ("rank", -1) if "rank" in row else ("score", 1)
        prompt, answer = prompt_and_answer(where, row)
        value = sign * number(f"{where}:{name}", row[name])
        annotator, source = export.annotator_of(row), export.source_of(row)
        yield Rating(where, prompt, answer, value, annotator, source, row.get("license"))


def prompt_and_answer(where: str, row: Row) -> tuple[Messages, str]:
    """Of a row with an answer of its own, or with a dialogue whose last message is the answer."""
    name = field_of(row, ANSWERS)
    if name is None:
        turns = row.get("messages") or row.get("conversations")
        dialogue = messages_of(where, turns if isinstance(turns, list) else [])
        if len(dialogue) < 2 or dialogue[-1]["role"] != "assistant":
            raise Problem(f"{where}: expected a dialogue that ends with an answer of the assistant")
        return dialogue[:-1], dialogue[-1]["content"]
    answer = row[name]
    if isinstance(answer, list) and len(answer) == 1:  # TRL keeps a completion as one message
        answer = messages_of(f"{where}:{name}", answer)[0]["content"]
    if not isinstance(answer, str):
        raise Problem(f"{where}:{name}: expected text, found {str(answer)[:60]!r}")
    return prompt_of(where, row), answer
