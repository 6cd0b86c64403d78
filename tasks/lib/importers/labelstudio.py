"""Label Studio: the full JSON export of a project (the tasks that go out: annotation_tasks.py).

Labelling configurations that are understood: Pairwise (with an optional choice `tie` or a degree), Ranker,
Ranker with buckets (answers in one bucket are equal), Choices that name an answer, and Rating, of several
answers in one task or of one answer per task. Checked with exports of Label Studio 1.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.importers.rankings import PROMPTS, Dropped, Judgement, prompt_of
from tasks.lib.importers.ratings import ANSWERS, Rating, ranks_of
from tasks.lib.importers.two_answers import of_word, two_answers
from tasks.lib.stage import Problem

Row = dict[str, Any]
UNASSIGNED = "_"  # the column of a bucket ranker where the answers start
# how clear a preference is, as Llama 2 (arXiv 2307.09288, section 3.2.2) spaces its margins
STRENGTHS = {"significantly": 1.0, "much": 1.0, "clearly": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}
SILENT = ("textarea", "number", "datetime")  # results that go with a verdict and are none
_GOOD, _BAD = {"best", "good", "top", "first"}, {"bad", "worst", "poor", "last"}


def read(
    path: Path, rows: Iterator[tuple[int, Row]], *, buckets: Sequence[str], untouched_seconds: float
) -> Iterator[Judgement | Dropped | Rating]:
    """The judgements of a full JSON export, and what is none: cancelled, abstained, untouched, unannotated.

    `buckets`: the names of a bucket ranker's buckets, best first; empty takes the order of the export.
    """
    for number, row in rows:
        if not row["annotations"]:
            yield Dropped(f"{path}:{number}", "unannotated", "a task without annotations")
        for annotation in row["annotations"]:
            where = f"{path}:{number}:annotation {annotation.get('id')}"
            if "was_cancelled" not in annotation or not isinstance(annotation.get("result"), list):
                raise Problem(f"{where}: expected was_cancelled and result; export as JSON, not as JSON-MIN or CSV")
            if annotation["was_cancelled"]:
                yield Dropped(where, "cancelled", "the annotator skipped the task")
                continue
            verdict = _verdict(where, row["data"], annotation, buckets, untouched_seconds)
            if isinstance(verdict, Dropped):
                yield verdict
                continue
            answers, ranks, strength = verdict
            said: dict[str, Any] = {
                "annotator": _annotator(where, annotation),
                "source": str(row["data"].get("source") or path.stem),
                "license": row["data"].get("license"),
                "order": (str(annotation.get("updated_at", "")), int(annotation.get("id") or 0)),
            }
            prompt = prompt_of(where, row["data"])
            if isinstance(ranks, float):  # one rated answer: its rivals are other tasks
                yield Rating(where, prompt, answers[0], ranks, **said)
            else:
                yield Judgement(where, prompt, answers, ranks, strength=strength, **said)


def _annotator(where: str, annotation: Row) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):  # older exports; the e-mail address stays out of data sets and reports
        who = who.get("id")
    if not isinstance(who, (int, str)) or isinstance(who, bool):
        raise Problem(f"{where}:completed_by: expected the annotator's number, found {str(who)[:60]!r}")
    return str(who)


def _verdict(
    where: str, data: Row, annotation: Row, buckets: Sequence[str], untouched_seconds: float
) -> tuple[list[str], list[int] | float, float | None] | Dropped:
    """(answers, ranks, strength) of one annotation, the value of one rated answer in place of ranks, or why
    it is no ranking."""
    results = {result.get("type"): result.get("value", {}) for result in annotation["result"]}
    words = [str(word).lower() for word in results.get("choices", {}).get("choices", [])]
    if "pairwise" in results or "tie" in words:
        answers = two_answers(where, data)
        side = results.get("pairwise", {}).get("selected")
        if "tie" in words:
            return answers, [0, 0], 0.0
        if side not in ("left", "right"):
            raise Problem(f"{where}:selected: expected left or right, found {str(side)[:60]!r}")
        strength = next((STRENGTHS[word] for word in words if word in STRENGTHS), None)
        return answers, [0, 1] if side == "left" else [1, 0], strength
    if "ranker" in results:
        return _ranking(
            where, data, results["ranker"]["ranker"], annotation.get("lead_time"), buckets, untouched_seconds
        )
    if "rating" in results:
        return _rated(where, data, annotation["result"])
    if words:
        if ranks := next(filter(None, (of_word(word, data) for word in words)), None):
            return two_answers(where, data), ranks, None
        raise Problem(f"{where}: the choice {words[0][:60]!r} names no answer of {', '.join(data)}")
    if others := [str(name) for name in results if name not in SILENT]:
        raise Problem(
            f"{where}: holds {others[0]}, as in a project of images or spans; expected a verdict on answers: "
            "pairwise, ranker, rating or choices"
        )
    return Dropped(where, "abstained", "submitted without a verdict")


def _rated(where: str, data: Row, results: Sequence[Row]) -> tuple[list[str], list[int] | float, None] | Dropped:
    """Ratings of answers, the mean of the aspects each; of one answer alone its value."""
    given: dict[str, list[float]] = {}
    for result in results:
        if result.get("type") != "rating":
            continue
        name = str(result.get("to_name"))
        if not isinstance(data.get(name), str) or name in PROMPTS:  # the tag's name is not the field's
            fields = [field for field in ANSWERS if isinstance(data.get(field), str)]
            if len(fields) != 1:
                raise Problem(f"{where}: rates {name}, which is no answer of the task ({', '.join(data)})")
            name = fields[0]
        value = result.get("value", {}).get("rating")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise Problem(f"{where}:rating: expected a number, found {str(value)[:60]!r}")
        given.setdefault(data[name], []).append(float(value))
    values = [sum(stars) / len(stars) for stars in given.values()]
    return list(given), ranks_of(values) if len(values) > 1 else values[0], None


def _ranking(
    where: str,
    data: Row,
    ranker: dict[str, list],
    lead_time: float | None,
    buckets: Sequence[str],
    untouched_seconds: float,
) -> tuple[list[str], list[int], None] | Dropped:
    shown = _listed_answers(where, data)
    ids = [str(one) for column in ranker.values() for one in column]
    if unknown := [one for one in ids if one not in shown]:
        raise Problem(f"{where}: ranks the answer {unknown[0]}, which the task does not list")
    if len(set(ids)) < len(ids):
        raise Problem(f"{where}: ranks an answer twice")
    if len(ranker) == 1:  # a plain ranker: its only column is the ranking, whatever its name
        if ids == list(shown) and lead_time is not None and lead_time < untouched_seconds:
            return Dropped(where, "untouched", f"the shown order, submitted after {lead_time:g} s")
        return [shown[one] for one in ids], list(range(len(ids))), None
    if len(ids) > 1 and len(ranker.get(UNASSIGNED, [])) == len(ids):
        return Dropped(where, "untouched", "no answer was put into a bucket")
    order = _bucket_order(where, [name for name in ranker if name != UNASSIGNED], buckets)
    rank = {str(one): place for place, name in enumerate(order) for one in ranker[name]}
    kept = [one for one in shown if one in rank]  # what stayed unassigned was not judged
    return [shown[one] for one in kept], [rank[one] for one in kept], None


def _listed_answers(where: str, data: Row) -> dict[str, str]:
    """id -> text of the answers, in the order in which they were shown."""
    lists = [
        v for v in data.values() if isinstance(v, list) and v and all(isinstance(i, dict) and "id" in i for i in v)
    ]
    if len(lists) != 1:
        raise Problem(f"{where}:data: expected one list of answers with ids, found {len(lists)}")
    texts = {str(item["id"]): item.get("body", item.get("html", item.get("title"))) for item in lists[0]}
    if len(texts) < len(lists[0]) or not all(isinstance(text, str) for text in texts.values()):
        raise Problem(f"{where}:data: expected answers with an id of their own and a body of text")
    return texts


def _bucket_order(where: str, found: list[str], stated: Sequence[str]) -> list[str]:
    """Best first. Postgres reorders the keys of JSON, so an order that looks turned round is refused."""
    if stated:
        if set(found) != set(stated):
            raise Problem(f"{where}: has the buckets {', '.join(found)}; preferences.buckets says {', '.join(stated)}")
        return list(stated)
    good = [i for i, name in enumerate(found) if name.lower() in _GOOD]
    bad = [i for i, name in enumerate(found) if name.lower() in _BAD]
    if good and bad and min(bad) < max(good):
        raise Problem(f"{where}: lists the buckets {', '.join(found)}; name them best first in preferences.buckets")
    return found
