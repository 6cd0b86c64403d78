"""Rankings of any number of answers, a row each: this project's own format, which the annotation page writes.

    {"prompt": "Q", "answers": ["Yes.", "No.", "So what?"], "ranks": [0, 1, 1], "annotator": "ada", "strength": 0.5}

Rank 0 is the best, equal ranks are a tie, gaps are closed. `scores`, larger is better, may replace `ranks`; a row with
both is refused. In a table the lists are JSON in a cell. A row with `skipped` is dropped (`cancelled`): the annotator
abstained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import Dropped, Export, Ranking, field_of, is_list_of_texts, prompt_of
from tasks.lib.importers.ratings import number, ranks_of
from tasks.lib.stage import Problem

ANSWERS = ("answers", "responses", "generations")
SCORES = ("scores", "ratings")
ADDED = ("candidate", "seconds", "at", "skipped")  # by the annotation page
KNOWN = {"id", "prompt", "messages", *ANSWERS, "ranks", "annotator", "strength", "source", "license", *ADDED}


def is_ranking(row: Row) -> bool:
    return bool({"ranks", *SCORES} & row.keys() and {*ANSWERS} & row.keys())


def read(export: Export) -> Iterator[Ranking | Dropped]:
    """A ranking per row, or what was dropped in its place. Problem for a row that is neither."""
    for where, row in export.rows:
        if row.get("skipped"):
            yield Dropped(where, "cancelled", "the annotator skipped the prompt")
        else:
            yield _ranking(export, where, row)


def _ranking(export: Export, where: str, row: Row) -> Ranking:
    name = field_of(row, ANSWERS) or ANSWERS[0]
    answers = _list(row[name])
    if not is_list_of_texts(answers):
        raise Problem(f"{where}:{name}: expected a list of texts, found {str(answers)[:60]!r}")
    unknown = row.keys() - KNOWN
    if "ranks" in row and unknown:  # this project's own format: a typo is a mistake
        raise Problem(f"{where}:{min(unknown)}: is not a field of a ranking ({', '.join(sorted(KNOWN))})")
    ranks = _ranks(where, row)
    if len(ranks) != len(answers):
        raise Problem(f"{where}:ranks: expected one per answer, {len(answers)}, found {len(ranks)}")
    prompt = prompt_of(where, row)
    strength = row.get("strength")
    return Ranking(
        where,
        prompt,
        answers,
        ranks,
        export.annotator_of(row),
        export.source_of(row),
        row.get("license") or None,
        None if strength in (None, "") else number(f"{where}:strength", strength),
        order=(str(row.get("at") or ""), 0),
    )


def _ranks(where: str, row: Row) -> list[int]:
    """The ranks of a row, as they are or by its scores (larger is better)."""
    if "ranks" not in row:
        name = field_of(row, SCORES) or SCORES[0]
        scores = _list(row[name])
        if not isinstance(scores, list):
            raise Problem(f"{where}:{name}: expected a list of numbers, found {str(scores)[:60]!r}")
        return ranks_of([number(f"{where}:{name}", score) for score in scores])
    ranks = _list(row["ranks"])
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise Problem(f"{where}:ranks: expected whole numbers from 0 (best), found {str(ranks)[:60]!r}")
    return cast(list[int], ranks)


def _list(value: Any) -> Any:
    """A list, which a cell of a table holds as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
