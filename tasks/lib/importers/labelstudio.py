"""Label Studio: the full JSON export of a project (the tasks that go out: annotation/tool_tasks.py).

    {"data": {"prompt": "Q", "responses": [{"id": "x", "body": "Yes."}, {"id": "y", "body": "No."}]},
     "annotations": [{"id": 1, "completed_by": 7, "was_cancelled": false, "lead_time": 12.5, "result": [
         {"type": "ranker", "value": {"ranker": {"_": [], "rank 1": ["x"], "rank 2": ["y"]}}}]}]}

Labelling configurations that are understood: Pairwise (with an optional choice `tie` or a degree), Ranker,
Ranker with buckets, Choices that name an answer, and Rating, of several answers in one task or of one answer per task.
Checked with exports of Label Studio 1.23.

The choice `tie`, answers in one bucket and equal ratings are ties. Dropped are tasks without annotations
(`unannotated`), annotations that were skipped (`cancelled`) or submitted without a verdict (`abstained`), and rankings
that nobody made (`untouched`): nothing was put into a bucket, or the shown order was submitted too fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import PROMPTS, Dropped, Export, Ranking, prompt_of
from tasks.lib.importers.ratings import ANSWERS, Rating, ranks_of
from tasks.lib.importers.two_answers import ranks_of_word, two_answers
from tasks.lib.stage import Problem

UNASSIGNED = "_"  # the column of a bucket ranker where the answers start
# how clear a preference is, as Llama 2 (arXiv 2307.09288, section 3.2.2) spaces its margins
STRENGTHS = {"significantly": 1.0, "much": 1.0, "clearly": 2 / 3, "slightly": 1 / 3, "negligibly": 0.0}
NO_VERDICTS = ("textarea", "number", "datetime")  # results that may accompany a verdict
GOOD, BAD = {"best", "good", "top", "first"}, {"bad", "worst", "poor", "last"}  # names of buckets


class Verdict(NamedTuple):
    """How an annotation ranks the answers of its task."""

    answers: list[str]
    ranks: list[int]
    strength: float | None = None


class OneRating(NamedTuple):
    """How an annotation rates the only answer of its task that it rates; the answer's rivals are other tasks."""

    answer: str
    value: float


def is_task(row: Row) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def is_json_min(row: Row) -> bool:
    """JSON-MIN or CSV, which lose what was cancelled."""
    return {"annotation_id", "annotator"} <= row.keys() and not is_task(row)


def read(export: Export) -> Iterator[Ranking | Dropped | Rating]:
    """What every annotation of every task says."""
    for where, row in export.rows:
        if not row["annotations"]:
            yield Dropped(where, "unannotated", "a task without annotations")
        for annotation in row["annotations"]:
            yield _imported(export, f"{where}:annotation {annotation.get('id')}", row["data"], annotation)


def _imported(export: Export, where: str, data: Row, annotation: Row) -> Ranking | Dropped | Rating:
    if "was_cancelled" not in annotation or not isinstance(annotation.get("result"), list):
        raise Problem(f"{where}: expected was_cancelled and result; export as JSON, not as JSON-MIN or CSV")
    if annotation["was_cancelled"]:
        return Dropped(where, "cancelled", "the annotator skipped the task")
    verdict = _verdict(export, where, data, annotation)
    if isinstance(verdict, Dropped):
        return verdict
    annotator = _annotator(where, annotation)
    source, license = export.source_of(data), data.get("license")
    order = (str(annotation.get("updated_at", "")), int(annotation.get("id") or 0))
    prompt = prompt_of(where, data)
    if isinstance(verdict, OneRating):
        return Rating(where, prompt, verdict.answer, verdict.value, annotator, source, license, order)
    answers, ranks, strength = verdict
    return Ranking(where, prompt, answers, ranks, annotator, source, license, strength, order)


def _annotator(where: str, annotation: Row) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):  # older exports; the e-mail address stays out of data sets and reports
        who = who.get("id")
    if not isinstance(who, (int, str)) or isinstance(who, bool):
        raise Problem(f"{where}:completed_by: expected the annotator's number, found {str(who)[:60]!r}")
    return str(who)


def _verdict(export: Export, where: str, data: Row, annotation: Row) -> Verdict | OneRating | Dropped:
    """What the results of an annotation say, by the kind of result."""
    results = {result.get("type"): result.get("value", {}) for result in annotation["result"]}
    words = [str(word).lower() for word in results.get("choices", {}).get("choices", [])]
    if "pairwise" in results or "tie" in words:
        return _pairwise(where, data, results.get("pairwise", {}).get("selected"), words)
    if "ranker" in results:
        return _ranker(export, where, data, results["ranker"]["ranker"], annotation.get("lead_time"))
    if "rating" in results:
        return _ratings(where, data, annotation["result"])
    if words:
        return _choice(where, data, words)
    for kind in results:
        if kind not in NO_VERDICTS:
            raise Problem(
                f"{where}: holds {kind}, as in a project of images or spans; expected a verdict on answers: "
                "pairwise, ranker, rating or choices"
            )
    return Dropped(where, "abstained", "submitted without a verdict")


def _pairwise(where: str, data: Row, side: Any, words: list[str]) -> Verdict:
    """The better side of two answers; an additional choice may say how clearly it is better, or that they tie."""
    answers = two_answers(where, data)
    if "tie" in words:
        return Verdict(answers, [0, 0], 0.0)
    if side not in ("left", "right"):
        raise Problem(f"{where}:selected: expected left or right, found {str(side)[:60]!r}")
    strength = next((STRENGTHS[word] for word in words if word in STRENGTHS), None)
    return Verdict(answers, [0, 1] if side == "left" else [1, 0], strength)


def _choice(where: str, data: Row, words: list[str]) -> Verdict:
    """The first choice that names an answer or a tie."""
    for word in words:
        ranks = ranks_of_word(word, data)
        if ranks is not None:
            return Verdict(two_answers(where, data), ranks)
    raise Problem(f"{where}: the choice {words[0][:60]!r} names no answer of {', '.join(data)}")


def _ratings(where: str, data: Row, results: Sequence[Row]) -> Verdict | OneRating:
    """The mean of each answer's ratings (aspects such as helpfulness)."""
    stars_of: dict[str, list[float]] = {}
    for result in results:
        if result.get("type") != "rating":
            continue
        answer = data[_rated_field(where, data, str(result.get("to_name")))]
        value = result.get("value", {}).get("rating")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise Problem(f"{where}:rating: expected a number, found {str(value)[:60]!r}")
        stars_of.setdefault(answer, []).append(float(value))
    answers = list(stars_of)
    values = [sum(stars) / len(stars) for stars in stars_of.values()]
    if len(answers) == 1:
        return OneRating(answers[0], values[0])
    return Verdict(answers, ranks_of(values))


def _rated_field(where: str, data: Row, tag: str) -> str:
    """The field of the answer that the tag of a rating shows: the field's name, if the labelling configuration uses it
    for the tag, or else the only field that is named like an answer."""
    if isinstance(data.get(tag), str) and tag not in PROMPTS:
        return tag
    fields = [field for field in ANSWERS if isinstance(data.get(field), str)]
    if len(fields) != 1:
        raise Problem(f"{where}: rates {tag}, which is not an answer of the task ({', '.join(data)})")
    return fields[0]


def _ranker(
    export: Export, where: str, data: Row, columns: dict[str, list], seconds: float | None
) -> Verdict | Dropped:
    """Answers in columns of ids: in one, best first, or in the buckets of a ranker with buckets."""
    shown = _listed_answers(where, data)
    ids = _ranked_ids(where, shown, columns)
    if len(columns) != 1:
        return _bucket_verdict(where, shown, columns, export.buckets)
    # A plain ranker, whatever the name of its column, begins with the shown order.
    if ids == list(shown) and seconds is not None and seconds < export.untouched_seconds:
        return Dropped(where, "untouched", f"the shown order, submitted after {seconds:g} s")
    return Verdict([shown[identity] for identity in ids], list(range(len(ids))))


def _bucket_verdict(
    where: str, shown: dict[str, str], columns: dict[str, list], stated_buckets: Sequence[str]
) -> Verdict | Dropped:
    """Answers in one bucket tie; what stayed unassigned was not ranked."""
    names = [name for name in columns if name != UNASSIGNED]
    unassigned = columns.get(UNASSIGNED, [])
    if len(unassigned) > 1 and not any(columns[name] for name in names):
        return Dropped(where, "untouched", "no answer was put into a bucket")
    rank_of: dict[str, int] = {}
    for rank, name in enumerate(_best_first(where, names, stated_buckets)):
        for identity in columns[name]:
            rank_of[str(identity)] = rank
    answers, ranks = [], []
    for identity, answer in shown.items():
        if identity in rank_of:
            answers.append(answer)
            ranks.append(rank_of[identity])
    return Verdict(answers, ranks)


def _ranked_ids(where: str, shown: dict[str, str], columns: dict[str, list]) -> list[str]:
    """The ids of the answers in all columns of a ranker; Problem when one is unknown or there twice."""
    ids: list[str] = []
    for column in columns.values():
        ids += [str(identity) for identity in column]
    for identity in ids:
        if identity not in shown:
            raise Problem(f"{where}: ranks the answer {identity}, which the task does not list")
    if len(set(ids)) < len(ids):
        raise Problem(f"{where}: ranks an answer twice")
    return ids


def _listed_answers(where: str, data: Row) -> dict[str, str]:
    """id -> text of the answers, in the order in which they were shown."""
    lists = [value for value in data.values() if _is_list_of_answers(value)]
    if len(lists) != 1:
        raise Problem(f"{where}:data: expected one list of answers with ids, found {len(lists)}")
    texts = {str(item["id"]): item.get("body", item.get("html", item.get("title"))) for item in lists[0]}
    if len(texts) < len(lists[0]) or not all(isinstance(text, str) for text in texts.values()):
        raise Problem(f"{where}:data: expected answers with an id of their own and a body of text")
    return texts


def _is_list_of_answers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "id" in item for item in value)


def _best_first(where: str, names: list[str], stated: Sequence[str]) -> list[str]:
    """The buckets, best first. Postgres reorders the keys of JSON, so an order that looks turned round is refused."""
    if stated:
        if set(names) != set(stated):
            raise Problem(f"{where}: has the buckets {', '.join(names)}; preferences.buckets says {', '.join(stated)}")
        return list(stated)
    is_after_bad = False
    for name in names:
        if is_after_bad and name.lower() in GOOD:
            raise Problem(f"{where}: lists the buckets {', '.join(names)}; name them best first in preferences.buckets")
        is_after_bad = is_after_bad or name.lower() in BAD
    return names
