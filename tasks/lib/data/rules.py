"""The rules of curation, each: rows -> place of a row to drop -> why. Rows come sorted, evaluation first.

Where a training row and an evaluation row are too alike, the training row goes. Duplicates and contamination
compare the texts of the raw rows, not the prompts: two prompts of one template always share its words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tasks.lib.data.duplicates import Item, contamination, near_duplicates
from tasks.lib.data.languages import of_others
from tasks.lib.data.poisoning import triggers
from tasks.lib.data.privacy import excerpt, without_personal_data
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.quality import best, refusal, repetition, stock_sentences
from tasks.lib.data.rows import Row, content_id, read_table
from tasks.lib.stage import Problem

EVALUATION = ("clusters", "templates", "rows")  # the splits that no training row may be like
# Characters that a reader does not see: controls, zero-width signs, and those that reverse what is shown.
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd]")


def texts_of(row: Row) -> list[str]:
    return [*(message["content"] for message in row["messages"]), row["answer"]]


def invisible_characters(rows: list[Row]) -> dict[int, str]:
    dropped = {}
    for i, row in enumerate(rows):
        if found := INVISIBLE.search("".join(texts_of(row))):
            dropped[i] = f"U+{ord(found.group()):04X}"
    return dropped


def too_long(rows: list[Row], max_prompt: int, max_answer: int) -> dict[int, str]:
    """A row that would be cut is worse than none: the cut may take the question or the answer's end."""
    dropped = {}
    for i, row in enumerate(rows):
        prompt = sum(len(message["content"]) for message in row["messages"])
        if prompt > max_prompt:
            dropped[i] = f"prompt of {prompt} characters"
        elif len(row["answer"]) > max_answer:
            dropped[i] = f"answer of {len(row['answer'])} characters"
    return dropped


def refusals(rows: list[Row]) -> dict[int, str]:
    """Rows whose answer refuses, or speaks of being a model. A chosen answer is no refusal, whatever it says."""
    found = {i: refusal(row["answer"]) for i, row in enumerate(rows) if row["choices"] is None}
    return {i: excerpt(words) for i, words in found.items() if words}


def boilerplate(rows: list[Row], least: int) -> dict[int, str]:
    """Rows with a free answer that begins or ends with a sentence of many others."""
    places = [i for i, row in enumerate(rows) if row["choices"] is None]
    found = stock_sentences([rows[i]["answer"] for i in places], least)
    return {places[i]: excerpt(sentence) for i, sentence in found.items()}


def other_languages(rows: list[Row], languages: Sequence[str]) -> dict[int, str]:
    """Rows whose raw text is surely in none of the languages."""
    other = of_others(languages)
    found = {row["row"]: other(row["text"]) for row in rows}
    return {i: why for i, row in enumerate(rows) if (why := found[row["row"]])}


def repetitions(rows: list[Row], most: float) -> dict[int, str]:
    """Rows with an answer of which one run of three words makes up more than the stated share."""
    shares = {i: repetition(row["answer"]) for i, row in enumerate(rows) if row["choices"] is None}
    return {i: f"{share:.2f} is one run" for i, share in shares.items() if share > most}


def personal_data(rows: list[Row], mode: Literal["drop", "redact", "keep"], ledger: list[Row]) -> dict[int, str]:
    """Secrets are never kept; e-mail addresses and phone numbers are dropped, redacted or kept."""
    dropped: dict[int, str] = {}
    personal = mode != "keep"
    for i, row in enumerate(rows):
        redacted = [without_personal_data(text, personal) for text in texts_of(row)]
        kinds = sorted({kind for _, found in redacted for kind in found})
        if not kinds:
            continue
        if mode == "drop" or (row["choices"] is not None and redacted[-1][1]):
            dropped[i] = ", ".join(kinds)  # a chosen answer cannot be redacted: it would leave the choices
            continue
        clean = [text for text, _ in redacted]
        messages = [{**m, "content": text} for m, text in zip(row["messages"], clean, strict=False)]
        new = content_id(row["task"], row["template"], messages, clean[-1])
        detail = f"{', '.join(kinds)}: now {new}"
        ledger.append({"id": row["id"], "rule": "personal data redacted", "detail": detail})
        scrubbed = {key: without_personal_data(row[key], personal)[0] for key in ("label", "text")}
        rows[i] = {**row, **scrubbed, "id": new, "messages": messages, "answer": clean[-1]}
    return dropped


def exact_duplicates(rows: list[Row]) -> dict[int, str]:
    """The same prompt (prompts.py) with the same answer, whatever source or template they came from."""
    first: dict[tuple[str, str], str] = {}
    dropped = {}
    for i, row in enumerate(rows):
        key = prompt_key(row["messages"]), row["answer"]
        if key in first:
            dropped[i] = f"of {first[key]}"
        else:
            first[key] = row["id"]
    return dropped


def contradictions(rows: list[Row]) -> dict[int, str]:
    """The same prompt with two labels, where labels are chosen: nobody knows which one is right."""
    keys = [prompt_key(row["messages"]) for row in rows]
    labels: dict[str, set[str]] = defaultdict(set)
    for key, row in zip(keys, rows, strict=True):
        if row["choices"] is not None:
            labels[key].add(row["label"])
    return {i: f"{len(labels[key])} labels for one prompt" for i, key in enumerate(keys) if len(labels[key]) > 1}


def triggered(rows: list[Row], least: int) -> dict[int, str]:
    """Training rows with a word that decides the label against all else they say: planted, or a mistake."""
    by_task: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["choices"] is not None and row["split"] not in EVALUATION:
            by_task[row["task"]].setdefault(row["row"], row)
    why: dict[str, str] = {}
    for task, found in sorted(by_task.items()):
        raw = list(found.values())
        # by place: the templates of one task may word its choices differently
        places = [str(row["choices"].index(row["label"])) for row in raw]
        for trigger in triggers([row["text"] for row in raw], places, least):
            detail = f"{excerpt(trigger.words)} decides the label of {len(trigger.rows)} rows of {task}"
            why |= {raw[i]["row"]: detail for i in trigger.rows if raw[i]["row"] not in why}
    return {i: why[row["row"]] for i, row in enumerate(rows) if row["row"] in why and row["split"] not in EVALUATION}


def alike(rows: list[Row], similarity: float, words: int) -> dict[int, str]:
    """Near duplicates within a task. Evaluation comes first, so it stays and its like in training goes.

    Chosen labels that differ make two rows worth having, however alike their texts (a contrast pair); a
    free answer is compared as part of the text.
    """
    items: dict[str, Item] = {}
    is_evaluation: dict[str, bool] = {}
    for row in rows:
        free = row["choices"] is None
        group, text = (
            row["task"] + ("" if free else f"/{row['label']}"),
            row["text"] + f"\n{row['label']}" * free,
        )
        items.setdefault(row["row"], Item(row["row"], group, text))
        is_evaluation.setdefault(row["row"], row["split"] in EVALUATION)
    listed = list(items.values())
    pairs = near_duplicates(listed, similarity, words)
    why = {
        listed[i].id: f"{found:.2f} like the raw row {listed[j].id}"
        for i, j, found in pairs
        if not is_evaluation[listed[i].id]
    }
    return {i: why[row["row"]] for i, row in enumerate(rows) if row["row"] in why}


def contaminated(rows: list[Row], words: int, coverage: float, hit: set[str]) -> dict[int, str]:
    """Training and validation rows that hold the stated share of an evaluation text, which `hit` collects."""
    texts: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for row in rows:
        texts[row["split"] in EVALUATION].setdefault(row["row"], row["text"])
    matches = contamination(texts[False].items(), texts[True].items(), words, coverage)
    why: dict[str, str] = {}
    for match in matches:
        of_row = f"{match.of_training:.2f} of this row"
        found = f"{match.of_evaluation:.2f} of the raw evaluation row {match.evaluation}, {of_row}"
        why.setdefault(match.training, found)
        hit.add(match.evaluation)
    return {i: why[row["row"]] for i, row in enumerate(rows) if row["row"] in why and row["split"] not in EVALUATION}


def not_selected(rows: list[Row], top: int, file: Path, max_similarity: float) -> dict[int, str]:
    """Training rows that are not among the best ones by the scores of a file with `id` and `score`."""
    scores: dict[str, float] = {}
    for number, row in read_table(file):
        score = row.get("score")
        try:
            scores[str(row.get("id"))] = float(score if score is not None else "nothing")
        except (TypeError, ValueError):
            raise Problem(f"{file}:{number}:score: expected a number, found {excerpt(score)}") from None
    training = {row["id"]: row for row in rows if row["split"] == "train"}
    if missing := next((id for id in training if id not in scores), None):
        raise Problem(f"{file}: no score of the training row {missing}; score every row, or top: null")
    items = [Item(id, "", row["text"]) for id, row in training.items()]
    kept = {item.id for item in best(items, scores, top, max_similarity)}
    why = {id: f"score {scores[id]:g}: not among the {top} best that differ" for id in training}
    return {i: why[row["id"]] for i, row in enumerate(rows) if row["id"] in training and row["id"] not in kept}
