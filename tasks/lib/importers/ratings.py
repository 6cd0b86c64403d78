"""Ratings of single answers become rankings: what one annotator gave to the answers of one prompt.

ultrafeedback  {instruction, completions: [{response, scores}]}, the scores of a judge
thumbs         KTO rows {prompt, completion, label} or {messages, label}, label true or false
scores         {prompt, answer, score} or {prompt, answer, rank}, a row per answer, as in a table
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tasks.lib.data.prompts import prompt_key
from tasks.lib.importers.rankings import Dropped, Judgement, Messages, messages_of, prompt_of
from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
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


def ranked(found: Iterable[Judgement | Dropped | Rating]) -> Iterator[Judgement | Dropped]:
    """Judgements as they are; the ratings of a prompt by an annotator as one ranking, equal values as ties."""
    groups: dict[tuple[str, str, str], dict[str, Rating]] = {}
    for item in found:
        if not isinstance(item, Rating):
            yield item
            continue
        group = groups.setdefault((prompt_key(item.prompt), item.annotator, item.source), {})
        if (earlier := group.get(item.answer)) and earlier.order > item.order:
            item, earlier = earlier, item
        if earlier:
            yield Dropped(earlier.where, "annotator_twice", f"{item.where} rates the same answer")
        group[item.answer] = item
    for group in groups.values():
        ratings = list(group.values())
        if len(ratings) == 1:
            yield Dropped(ratings[0].where, "too_few_answers", "a rated answer without a rival")
            continue
        first = ratings[0]
        yield Judgement(
            first.where,
            first.prompt,
            [rating.answer for rating in ratings],
            ranks_of([rating.value for rating in ratings]),
            first.annotator,
            first.source,
            first.license,
            order=max(rating.order for rating in ratings),
        )


def ranks_of(values: list[float]) -> list[int]:
    """Ranks (0 best, equal = tie) of values of which the largest is best."""
    best_first = sorted(set(values), reverse=True)
    return [best_first.index(value) for value in values]


def number(where: str, value: Any) -> float:
    """A finite number, also as text (tables, judges' JSON); Problem otherwise."""
    try:
        found = float(value) if isinstance(value, (int, float, str)) else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise Problem(f"{where}: expected a number, found {str(value)[:60]!r}")
    return found


def completions(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    """UltraFeedback (arXiv 2310.01377): the judge's scores of every completion of an instruction."""
    for line, row in rows:
        where = f"{path}:{line}"
        answers, values = [], []
        for place, completion in enumerate(row["completions"]):
            answer = completion.get("response") if isinstance(completion, dict) else None
            if not isinstance(answer, str):
                raise Problem(f"{where}:completions: expected a response as text in completion {place}")
            if (value := _score(f"{where}:completions", completion)) is None:
                yield Dropped(f"{where}:completion {place}", "unranked_answer", "a completion without a score")
            else:
                answers.append(answer)
                values.append(value)
        source = str(row.get("source") or path.stem)
        annotator = str(row.get("annotator") or path.stem)
        yield Judgement(where, prompt_of(where, row), answers, ranks_of(values), annotator, source)


def _score(where: str, completion: Row) -> float | None:
    """The mean of the judge's aspects (helpfulness, honesty, ...), or else the one score that there is.

    `overall_score` is asked last: the published data set holds 10s in it that were meant as 1s.
    """
    aspects = completion.get("annotations")
    given = [a.get("Rating") for a in aspects.values()] if isinstance(aspects, dict) else []
    if stated := [number(where, value) for value in given if value not in (None, "N/A")]:
        return fmean(stated)
    for name in ("fine-grained_score", "score", "overall_score"):
        if completion.get(name) is not None:
            return number(f"{where}:{name}", completion[name])
    return None


def thumbs(path: Path, rows: Rows) -> Iterator[Rating]:
    """KTO rows. A prompt needs two rated answers before they say anything about each other."""
    for line, row in rows:
        where = f"{path}:{line}"
        label = row.get("label", row.get("kto_tag"))
        if isinstance(label, str) and label.lower() in ("true", "false"):
            label = label.lower() == "true"
        if not isinstance(label, bool):
            raise Problem(f"{where}:label: expected true or false, found {str(label)[:60]!r}")
        prompt, answer = prompt_and_answer(where, row)
        yield Rating(where, prompt, answer, float(label), *_said(path, row))


def scores(path: Path, rows: Rows) -> Iterator[Rating]:
    """A row per answer with its score (larger is better) or its rank (smaller is better)."""
    for line, row in rows:
        where = f"{path}:{line}"
        name, sign = ("rank", -1) if "rank" in row else ("score", 1)
        prompt, answer = prompt_and_answer(where, row)
        yield Rating(where, prompt, answer, sign * number(f"{where}:{name}", row[name]), *_said(path, row))


def prompt_and_answer(where: str, row: Row) -> tuple[Messages, str]:
    """Of a row with an answer of its own, or with a dialogue whose last message is the answer."""
    name = next((name for name in ANSWERS if name in row), None)
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


def _said(path: Path, row: Row) -> tuple[str, str, str | None]:
    """(annotator, source, license) of a row, or of its file."""
    return str(row.get("annotator") or path.stem), str(row.get("source") or path.stem), row.get("license")
