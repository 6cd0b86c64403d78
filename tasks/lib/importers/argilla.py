"""Argilla: records as its SDK writes them (JSON, flat list, exported dataset), one verdict per user.

A ranking question lists fields best first (or {value, rank} with ties), a label question names the better of
two fields or a tie, a rating question rates the answer that its name names. Checked with Argilla 2.8.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.lib.importers.rankings import PROMPTS, Dropped, Judgement, Row, prompt_of
from tasks.lib.importers.ratings import ANSWERS, Rating, ranks_of
from tasks.lib.importers.two_answers import of_word, two_answers
from tasks.lib.stage import Problem

Verdict = tuple[str, Any, str]  # question, value, status


def is_record(row: Mapping[str, Any]) -> bool:
    """True for the three shapes of a record: nested, flat, and the columns of an exported dataset."""
    if isinstance(row.get("fields"), dict) and "responses" in row:
        return True
    return any(name.endswith((".responses", ".responses.users")) for name in row) or any(
        _is_column(value) for value in row.values()
    )


def _is_column(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "user_id" in value[0]
        and "value" in value[0]
    )  # fmt: skip


def read(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[Judgement | Dropped | Rating]:
    """The verdicts of every user on every record, and what is none: drafts, discarded, empty records."""
    for number, row in rows:
        where = f"{path}:{number}"
        fields, users = _record(where, row)
        if not users:
            yield Dropped(where, "unannotated", "a record without responses")
        for user, verdicts in users.items():
            place = f"{where}:user {user}"
            said = [v for v in verdicts if v[2] not in ("draft", "discarded")]
            if not said:
                yield Dropped(place, "cancelled", f"the response is {verdicts[0][2]}")
                continue
            if found := list(_verdicts(place, fields, said, user, str(row.get("source") or path.stem))):
                yield from found
            else:
                yield Dropped(place, "abstained", "no response compares or rates the answers")


def _record(where: str, row: Row) -> tuple[Row, dict[str, list[Verdict]]]:
    """(fields, user -> verdicts) of a record in any of its shapes."""
    users: dict[str, list[Verdict]] = defaultdict(list)
    if isinstance(row.get("fields"), dict):
        given = row["responses"] or {}
        if isinstance(given, list):  # Argilla 1: a response per user, all questions in it
            for response in given:
                for question, said in (response.get("values") or {"": {}}).items():
                    users[str(response.get("user_id"))].append(
                        (question, said.get("value"), str(response.get("status")))
                    )
        else:
            _columns(where, given, users)
        return row["fields"], users
    for name in row:
        if name.endswith(".responses"):
            values = row[name] or []
            who, status = row.get(f"{name}.users") or [], row.get(f"{name}.status") or [None] * len(values)
            if not len(values) == len(who) == len(status):
                raise Problem(f"{where}:{name}: expected as many users as responses, {len(values)}")
            for user, value, state in zip(who, values, status, strict=True):
                users[str(user)].append((name.removesuffix(".responses"), value, str(state)))
    _columns(where, {name: value for name, value in row.items() if _is_column(value)}, users)
    fields = {k: v for k, v in row.items() if ".responses" not in k and ".suggestion" not in k}
    return fields, users


def _columns(where: str, given: Mapping[str, Any], users: dict[str, list[Verdict]]) -> None:
    for question, responses in given.items():
        if not isinstance(responses, list) or not all(isinstance(r, dict) for r in responses):
            raise Problem(f"{where}:{question}: expected a list of responses, found {str(responses)[:60]!r}")
        for response in responses:
            verdict = question, response.get("value"), str(response.get("status"))
            users[str(response.get("user_id"))].append(verdict)


def _verdicts(where: str, fields: Row, said: list[Verdict], user: str, source: str) -> Iterator[Judgement | Rating]:
    prompt = prompt_of(where, fields)
    rated: dict[str, list[float]] = defaultdict(list)
    for question, value, _ in said:
        if isinstance(value, list) and (order := _ranking(where, question, value, fields)):
            answers = [fields[name] for name in order]
            yield Judgement(where, prompt, answers, list(order.values()), user, source)
        elif isinstance(value, str) and (ranks := of_word(value, fields)):
            yield Judgement(where, prompt, two_answers(where, fields), ranks, user, source)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rated[_rated_field(where, question, fields)].append(float(value))
    values = {name: sum(given) / len(given) for name, given in rated.items()}
    if len(values) > 1:
        ranks = ranks_of(list(values.values()))
        yield Judgement(where, prompt, [fields[name] for name in values], ranks, user, source)
    for name, value in values.items() if len(values) == 1 else ():
        yield Rating(where, prompt, fields[name], value, user, source)


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
    found = named or [name for name in texts if name in ANSWERS]
    if len(found) != 1:
        raise Problem(
            f"{where}:{question}: a rating of which answer? Name the question after the field "
            f"({', '.join(texts)}), such as rating_{texts[0] if texts else 'answer'}"
        )
    return found[0]
