"""Argilla: records as its SDK writes them, with the responses of every user. Checked with Argilla 2.8.

    {"fields": {"prompt": "Q", "response_a": "Yes.", "response_b": "No."},
     "responses": {"preference": [{"value": ["response_a", "response_b"], "user_id": "u", "status": "submitted"}]}}

A ranking question lists fields best first, or as {value, rank}; a label question names the better of two fields or a
tie; a rating question rates the answer that its name names. Read, too, are the SDK's flat list, records of
Argilla 1, and an exported data set, whose questions are columns of the row.

Equal ranks, the label `tie` and equal ratings are ties. Dropped are records without responses (`unannotated`), users
whose responses are all drafts or discarded (`cancelled`), and users who answered no question on the answers
(`abstained`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import PROMPTS, Dropped, Export, Ranking, prompt_of
from tasks.lib.importers.ratings import ANSWERS, Rating, ranks_of
from tasks.lib.importers.two_answers import ranks_of_word, two_answers
from tasks.lib.stage import Problem


class Response(NamedTuple):
    """What a user answered to one question about a record."""

    question: str
    value: Any
    status: str


Responses = dict[str, list[Response]]  # by user


def is_record(row: Row) -> bool:
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    is_flat = any(name.endswith((".responses", ".responses.users")) for name in row)
    return is_flat or any(_is_column(value) for value in row.values())


def _is_column(value: Any) -> bool:
    """Whether a column of an exported data set holds the responses to a question."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return {"user_id", "value"} <= value[0].keys()


def read(export: Export) -> Iterator[Ranking | Dropped | Rating]:
    """What every user says on every record."""
    for where, row in export.rows:
        fields, responses_of = _record(where, row)
        if not responses_of:
            yield Dropped(where, "unannotated", "a record without responses")
        for user, responses in responses_of.items():
            place = f"{where}:user {user}"
            submitted = [response for response in responses if response.status not in ("draft", "discarded")]
            if not submitted:
                yield Dropped(place, "cancelled", f"the response is {responses[0].status}")
                continue
            verdicts = list(_verdicts(place, fields, submitted, user, export.source_of(row)))
            yield from verdicts
            if not verdicts:
                yield Dropped(place, "abstained", "no response compares or rates the answers")


def _record(where: str, row: Row) -> tuple[Row, Responses]:
    """The fields of a record in any of its shapes, and the responses to it."""
    if not isinstance(row.get("fields"), dict):
        return _flat_record(where, row)
    responses_of: Responses = defaultdict(list)
    given = row["responses"] or {}
    if isinstance(given, list):  # Argilla 1: a response per user, all questions in it
        for response in given:
            for question, answered in (response.get("values") or {"": {}}).items():
                verdict = Response(question, answered.get("value"), str(response.get("status")))
                responses_of[str(response.get("user_id"))].append(verdict)
    else:
        _add_columns(where, given, responses_of)
    return row["fields"], responses_of


def _flat_record(where: str, row: Row) -> tuple[Row, Responses]:
    """A row {field: text, <question>.responses: [...], <question>.responses.users: [...], ...status: [...]}, or of an
    exported data set, where each question is a column of responses."""
    responses_of: Responses = defaultdict(list)
    for name in row:
        if not name.endswith(".responses"):
            continue
        values = row[name] or []
        users = row.get(f"{name}.users") or []
        statuses = row.get(f"{name}.status") or [None] * len(values)
        if not len(values) == len(users) == len(statuses):
            raise Problem(f"{where}:{name}: expected as many users as responses, {len(values)}")
        for user, value, status in zip(users, values, statuses, strict=True):
            responses_of[str(user)].append(Response(name.removesuffix(".responses"), value, str(status)))
    fields, columns = {}, {}
    for name, value in row.items():
        if _is_column(value):
            columns[name] = value
        if ".responses" not in name and ".suggestion" not in name:
            fields[name] = value
    _add_columns(where, columns, responses_of)
    return fields, responses_of


def _add_columns(where: str, columns: Mapping[str, Any], responses_of: Responses) -> None:
    """Add the responses of columns {question: [{value, user_id, status}]} to those of their users."""
    for question, responses in columns.items():
        if not isinstance(responses, list) or not all(isinstance(response, dict) for response in responses):
            raise Problem(f"{where}:{question}: expected a list of responses, found {str(responses)[:60]!r}")
        for response in responses:
            verdict = Response(question, response.get("value"), str(response.get("status")))
            responses_of[str(response.get("user_id"))].append(verdict)


def _verdicts(where: str, fields: Row, submitted: list[Response], user: str, source: str) -> Iterator[Ranking | Rating]:
    """A user's rankings and labels, and then the ratings: of several answers a ranking, of one a rating."""
    prompt = prompt_of(where, fields)
    ratings_of: dict[str, list[float]] = defaultdict(list)  # by field
    for question, value, _ in submitted:
        if isinstance(value, list):
            rank_of = _ranking(where, question, value, fields)
            if rank_of:
                answers = [fields[name] for name in rank_of]
                yield Ranking(where, prompt, answers, list(rank_of.values()), user, source)
        elif isinstance(value, str):
            ranks = ranks_of_word(value, fields)
            if ranks:
                yield Ranking(where, prompt, two_answers(where, fields), ranks, user, source)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            ratings_of[_rated_field(where, question, fields)].append(float(value))
    answers = [fields[name] for name in ratings_of]
    means = [sum(ratings) / len(ratings) for ratings in ratings_of.values()]
    if len(answers) > 1:
        yield Ranking(where, prompt, answers, ranks_of(means), user, source)
    elif answers:
        yield Rating(where, prompt, answers[0], means[0], user, source)


def _ranking(where: str, question: str, value: list[Any], fields: Row) -> dict[str, int] | None:
    """Field -> rank of a ranking question; None of another list (several labels)."""
    if value and all(isinstance(item, dict) and {"value", "rank"} <= item.keys() for item in value):
        ranks = {str(item["value"]): item["rank"] for item in value}
    else:
        ranks = {str(item): place for place, item in enumerate(value)}
    known = [name for name in ranks if isinstance(fields.get(name), str)]
    if not known:
        return None
    if len(known) < len(value) or not all(type(rank) is int for rank in ranks.values()):
        raise Problem(f"{where}:{question}: expected a ranking of the fields, found {str(value)[:60]!r}")
    return ranks


def _rated_field(where: str, question: str, fields: Row) -> str:
    """The answer that a rating question is about: the one its name ends or begins with, or the only one."""
    texts = [name for name, value in fields.items() if isinstance(value, str) and name not in PROMPTS]
    named = [name for name in texts if re.search(rf"(^|[_\-.]){re.escape(name)}($|[_\-.])", question)]
    rated = named or [name for name in texts if name in ANSWERS]
    if len(rated) != 1:
        raise Problem(
            f"{where}:{question}: a rating of which answer? Name the question after the field "
            f"({', '.join(texts)}), such as rating_{texts[0] if texts else 'answer'}"
        )
    return rated[0]
