"""The rules of curation: each looks at the rows that are left and says which of them go, and why.

A rule is a function of the rows and of the section `curate` of params.yaml. RULES, at the end, names them in their
order; a rule that is switched off finds nothing. To add one, write it here, put it into RULES, and its parameter into
settings/curate.py and params.yaml.

Rows come sorted, evaluation first. Where a training row and an evaluation row are too alike, the training row goes.
Duplicates and contamination compare the texts of the raw rows, not the prompts: two prompts of one template always
share its words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tasks.lib.data.duplicates import Item, contamination, near_duplicates
from tasks.lib.data.languages import of_others
from tasks.lib.data.poisoning import triggers
from tasks.lib.data.privacy import excerpt, without_personal_data
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.quality import best, refusal, repetition, stock_sentences
from tasks.lib.data.rows import Row, content_id, read_table
from tasks.lib.data.splits import EVALUATION
from tasks.lib.settings.curate import Params
from tasks.lib.stage import Problem

# Characters that a reader does not see: controls, zero-width signs, and those that reverse what is shown.
INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd]")


@dataclass(frozen=True)
class Findings:
    """What a rule says of the rows; a place is that of a row in the list."""

    drop: dict[int, str] = field(default_factory=dict)  # place -> why the row goes
    redact: dict[int, tuple[Row, str]] = field(default_factory=dict)  # place -> the row that it becomes, and why
    leaked: set[str] = field(default_factory=set)  # ids of raw evaluation rows that training rows hold


def invisible_characters(rows: list[Row], params: Params) -> Findings:
    findings = Findings()
    for place, row in enumerate(rows):
        match = INVISIBLE.search("".join(_texts_of(row)))
        if match:
            findings.drop[place] = f"U+{ord(match.group()):04X}"
    return findings


def _texts_of(row: Row) -> list[str]:
    """The messages of the prompt, then the answer."""
    texts = [message["content"] for message in row["messages"]]
    texts.append(row["answer"])
    return texts


def too_long(rows: list[Row], params: Params) -> Findings:
    """A row that would be cut is worse than none: the cut may take the question or the answer's end."""
    findings = Findings()
    for place, row in enumerate(rows):
        prompt = sum(len(message["content"]) for message in row["messages"])
        if prompt > params.max_prompt_characters:
            findings.drop[place] = f"prompt of {prompt} characters"
        elif len(row["answer"]) > params.max_answer_characters:
            findings.drop[place] = f"answer of {len(row['answer'])} characters"
    return findings


def other_languages(rows: list[Row], params: Params) -> Findings:
    """Rows whose raw text is surely in none of the languages."""
    findings = Findings()
    if params.languages is None:
        return findings
    other_language = of_others(params.languages)
    reasons = {row["row"]: other_language(row["text"]) for row in rows}  # of a raw row, None where it may stay
    for place, row in enumerate(rows):
        reason = reasons[row["row"]]
        if reason:
            findings.drop[place] = reason
    return findings


def _free_answers(rows: list[Row]) -> dict[int, str]:
    """Place -> answer of the rows whose answer is free text: a chosen one is as it is, whatever it says."""
    return {place: row["answer"] for place, row in enumerate(rows) if row["choices"] is None}


def refusals(rows: list[Row], params: Params) -> Findings:
    """Rows whose answer refuses, or speaks of being a model."""
    findings = Findings()
    if params.refusals == "keep":
        return findings
    for place, answer in _free_answers(rows).items():
        words = refusal(answer)
        if words:
            findings.drop[place] = excerpt(words)
    return findings


def boilerplate(rows: list[Row], params: Params) -> Findings:
    """Rows with an answer that begins or ends with a sentence of many others."""
    findings = Findings()
    if params.boilerplate_answers is None:
        return findings
    answers = _free_answers(rows)
    places = list(answers)
    stock = stock_sentences(list(answers.values()), params.boilerplate_answers)
    for i, sentence in stock.items():
        findings.drop[places[i]] = excerpt(sentence)
    return findings


def repetitions(rows: list[Row], params: Params) -> Findings:
    """Rows with an answer of which one run of three words makes up more than the stated share."""
    findings = Findings()
    if params.max_repetition is None:
        return findings
    for place, answer in _free_answers(rows).items():
        share = repetition(answer)
        if share > params.max_repetition:
            findings.drop[place] = f"{share:.2f} is one run"
    return findings


def personal_data(rows: list[Row], params: Params) -> Findings:
    """Secrets are never kept; e-mail addresses and phone numbers are dropped, redacted or kept."""
    findings = Findings()
    personal = params.personal_data != "keep"
    for place, row in enumerate(rows):
        clean: list[str] = []
        kinds: set[str] = set()
        for text in _texts_of(row):
            clean_text, kinds_in_text = without_personal_data(text, personal)
            clean.append(clean_text)
            kinds.update(kinds_in_text)
        if not kinds:
            continue
        listed = ", ".join(sorted(kinds))
        *contents, answer = clean
        # a chosen answer cannot be redacted: it would no longer be one of the choices
        if params.personal_data == "drop" or (row["choices"] is not None and answer != row["answer"]):
            findings.drop[place] = listed
        else:
            redacted = _redacted(row, contents, answer, personal)
            findings.redact[place] = (redacted, f"{listed}: now {redacted['id']}")
    return findings


def _redacted(row: Row, contents: list[str], answer: str, personal: bool) -> Row:
    """The row with these contents of its messages, this answer, and another id."""
    messages = []
    for message, content in zip(row["messages"], contents, strict=True):
        messages.append({"role": message["role"], "content": content})
    label, _ = without_personal_data(row["label"], personal)
    text, _ = without_personal_data(row["text"], personal)
    id = content_id(row["task"], row["template"], messages, answer)
    return {**row, "id": id, "messages": messages, "answer": answer, "label": label, "text": text}


def exact_duplicates(rows: list[Row], params: Params) -> Findings:
    """The same prompt (prompts.py) with the same answer, whatever source or template they came from."""
    findings = Findings()
    first: dict[tuple[str, str], str] = {}  # (prompt, answer) -> id of the first row
    for place, row in enumerate(rows):
        key = prompt_key(row["messages"]), row["answer"]
        if key in first:
            findings.drop[place] = f"of {first[key]}"
        else:
            first[key] = row["id"]
    return findings


def contradictions(rows: list[Row], params: Params) -> Findings:
    """The same prompt with two labels, where labels are chosen: nobody knows which one is right."""
    findings = Findings()
    keys = [prompt_key(row["messages"]) for row in rows]
    labels: dict[str, set[str]] = defaultdict(set)  # of a prompt
    for key, row in zip(keys, rows, strict=True):
        if row["choices"] is not None:
            labels[key].add(row["label"])
    for place, key in enumerate(keys):
        if len(labels[key]) > 1:
            findings.drop[place] = f"{len(labels[key])} labels for one prompt"
    return findings


def triggered(rows: list[Row], params: Params) -> Findings:
    """Training rows with a word that decides the label against all else they say: planted, or a mistake."""
    if params.trigger_rows is None:
        return Findings()
    tasks: dict[str, dict[str, Row]] = defaultdict(dict)  # task -> id of a raw row -> its first rendering
    for row in rows:
        if row["choices"] is not None and row["split"] not in EVALUATION:
            tasks[row["task"]].setdefault(row["row"], row)
    reasons: dict[str, str] = {}  # id of a raw row -> why its renderings go
    for task, of_task in sorted(tasks.items()):
        firsts = list(of_task.values())
        texts = [row["text"] for row in firsts]
        # by their place: the templates of one task may word its choices differently
        labels = [str(row["choices"].index(row["label"])) for row in firsts]
        for planted in triggers(texts, labels, params.trigger_rows):
            reason = f"{excerpt(planted.words)} decides the label of {len(planted.rows)} rows of {task}"
            for i in planted.rows:
                reasons.setdefault(firsts[i]["row"], reason)
    return Findings(_of_raw_rows(rows, reasons))


def _of_raw_rows(rows: list[Row], reasons: dict[str, str]) -> dict[int, str]:
    """Place -> reason of all rows outside evaluation that were rendered from these raw rows."""
    drop: dict[int, str] = {}
    for place, row in enumerate(rows):
        if row["row"] in reasons and row["split"] not in EVALUATION:
            drop[place] = reasons[row["row"]]
    return drop


def alike(rows: list[Row], params: Params) -> Findings:
    """Near duplicates within a task. Evaluation comes first, so it stays and its like in training goes.

    Chosen labels that differ make two rows worth having, however alike their texts (a contrast pair); a
    free answer is compared as part of the text.
    """
    evaluation = {row["row"] for row in rows if row["split"] in EVALUATION}
    items: dict[str, Item] = {}  # one per raw row
    for row in rows:
        if row["choices"] is None:
            item = Item(row["row"], row["task"], f"{row['text']}\n{row['label']}")
        else:
            item = Item(row["row"], f"{row['task']}/{row['label']}", row["text"])
        items.setdefault(item.id, item)
    listed = list(items.values())
    reasons: dict[str, str] = {}
    for i, j, similarity in near_duplicates(listed, params.near_duplicates.similarity, params.near_duplicates.words):
        if listed[i].id not in evaluation:
            reasons[listed[i].id] = f"{similarity:.2f} like the raw row {listed[j].id}"
    return Findings(_of_raw_rows(rows, reasons))


def contaminated(rows: list[Row], params: Params) -> Findings:
    """Training and validation rows that hold the stated share of an evaluation text."""
    training: dict[str, str] = {}  # id of a raw row -> its text
    evaluation: dict[str, str] = {}
    for row in rows:
        texts = evaluation if row["split"] in EVALUATION else training
        texts.setdefault(row["row"], row["text"])
    leaked: set[str] = set()
    reasons: dict[str, str] = {}
    settings = params.contamination
    for match in contamination(training.items(), evaluation.items(), settings.words, settings.coverage):
        of_evaluation = f"{match.of_evaluation:.2f} of the raw evaluation row {match.evaluation}"
        reasons.setdefault(match.training, f"{of_evaluation}, {match.of_training:.2f} of this row")
        leaked.add(match.evaluation)
    return Findings(_of_raw_rows(rows, reasons), leaked=leaked)


def not_selected(rows: list[Row], params: Params) -> Findings:
    """Training rows that are not among the best ones by the scores of a file with `id` and `score`."""
    findings = Findings()
    settings = params.selection
    if settings.top is None:
        return findings
    scores = _scores(settings.scores)
    items: dict[str, Item] = {}
    for row in rows:
        if row["split"] == "train":
            if row["id"] not in scores:
                missing = f"no score of the training row {row['id']}"
                raise Problem(f"{settings.scores}: {missing}; score every row, or set curate.selection.top to null")
            items[row["id"]] = Item(row["id"], "", row["text"])
    kept = {item.id for item in best(list(items.values()), scores, settings.top, settings.max_similarity)}
    for place, row in enumerate(rows):
        if row["id"] in items and row["id"] not in kept:
            score = f"score {scores[row['id']]:g}"
            findings.drop[place] = f"{score}: not among the {settings.top} best that differ"
    return findings


def _scores(file: Path) -> dict[str, float]:
    scores: dict[str, float] = {}
    for number, row in read_table(file):
        score = row.get("score")
        try:
            scores[str(row.get("id"))] = float(score if score is not None else "nothing")
        except (TypeError, ValueError):
            raise Problem(f"{file}:{number}:score: expected a number, found {excerpt(score)}") from None
    return scores


RULES: dict[str, Callable[[list[Row], Params], Findings]] = {  # as the ledger and the report name them
    "invisible characters": invisible_characters,
    "length": too_long,
    "language": other_languages,
    "refusal": refusals,
    "boilerplate": boilerplate,
    "repetition": repetitions,
    "personal data": personal_data,
    "exact duplicate": exact_duplicates,
    "contradiction": contradictions,
    "trigger": triggered,
    "near duplicate": alike,
    "contamination": contaminated,
    "selection": not_selected,
}
