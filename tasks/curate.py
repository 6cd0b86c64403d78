"""curate: drop what training must not see, and say why for every row.

Reads   data/instructions/rows.parquet
Writes  data/curated/{train,preference,policy,validation,evaluation}.parquet, data/curated/ledger.parquet,
        reports/curate.json
Run     python -m tasks.curate

Evaluation rows are only dropped for what is wrong with them alone; where a training row and an evaluation row
are too alike, the training row goes. Duplicates and contamination compare the texts of the raw rows, not the
prompts: two prompts of one template always share its words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from tasks.lib.data.duplicates import Item, contamination, near_duplicates
from tasks.lib.data.poisoning import triggers
from tasks.lib.data.privacy import excerpt, without_personal_data
from tasks.lib.data.quality import best, refusal, repetition
from tasks.lib.data.rows import INSTRUCTION, LEDGER, Row, content_id, read_parquet, read_table, write_parquet
from tasks.lib.stage import Problem, Stage, main

FILES = {  # file -> its splits, in the order in which a duplicate is kept
    "evaluation": ("clusters", "templates", "rows"),
    "validation": ("validation",),
    "policy": ("policy",),
    "preference": ("preference",),
    "train": ("train",),
}
EVALUATION = FILES["evaluation"]
ORDER = {split: place for place, split in enumerate(s for splits in FILES.values() for s in splits)}
# Characters that a reader does not see: controls, zero-width signs, and those that reverse what is shown.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd]"
)


class NearDuplicates(BaseModel, extra="forbid"):
    similarity: float = Field(gt=0, le=1)
    words: int = Field(ge=1)


class Contamination(BaseModel, extra="forbid"):
    coverage: float = Field(gt=0, le=1)
    words: int = Field(ge=2)


class Selection(BaseModel, extra="forbid"):
    top: int | None = Field(default=None, ge=1)
    scores: Path = Path("data/instructions/rows.parquet")
    max_similarity: float = Field(default=0.7, gt=0, le=1)


class Params(BaseModel, extra="forbid"):
    max_prompt_characters: int = Field(ge=1)
    max_answer_characters: int = Field(ge=1)
    refusals: Literal["keep", "drop"] = "keep"
    max_repetition: float | None = Field(None, gt=0, le=1)
    personal_data: Literal["drop", "redact", "keep"]
    near_duplicates: NearDuplicates
    contamination: Contamination
    trigger_rows: int | None = Field(ge=5)
    selection: Selection = Selection()


def run(params: Params, stage: Stage) -> None:
    rows = read_parquet(Path("data/instructions/rows.parquet"), INSTRUCTION.names)
    if unknown := sorted({row["split"] for row in rows} - ORDER.keys()):
        raise Problem(f"data/instructions/rows.parquet: {unknown[0]} is no split; known: {', '.join(ORDER)}")
    rows.sort(key=lambda row: (ORDER[row["split"]], row["id"]))
    ledger: list[Row] = []
    evaluation_hit: set[str] = set()
    table = [("all rows", len(rows), len(rows))]
    rules: list[tuple[str, Callable[[list[Row]], dict[int, str]]]] = [
        ("invisible characters", invisible_characters),
        ("length", lambda rows: too_long(params, rows)),
        ("refusal", lambda rows: refusals(params, rows)),
        ("repetition", lambda rows: repetitions(params, rows)),
        ("personal data", lambda rows: personal_data(params, rows, ledger)),
        ("exact duplicate", exact_duplicates),
        ("contradiction", contradictions),
        ("trigger", lambda rows: triggered(params, rows)),
        ("near duplicate", lambda rows: alike(params, rows)),
        ("contamination", lambda rows: contaminated(params, rows, evaluation_hit)),
        ("selection", lambda rows: not_selected(params.selection, rows)),
    ]
    before = splits_of(rows)
    for number, (rule, judge) in enumerate(rules, 1):
        dropped = judge(rows)
        ledger += [{"id": rows[i]["id"], "rule": rule, "detail": why} for i, why in sorted(dropped.items())]
        table.append((rule, len(rows), len(rows) - len(dropped)))
        rows = [row for i, row in enumerate(rows) if i not in dropped]
        stage.progress(number, len(rules), rows=len(rows))
    after = splits_of(rows)
    if emptied := [split for split in before if split not in after]:
        raise Problem(f"curate: no row of the split {emptied[0]} is left; see the rules and their parameters")

    folder = Path("data/curated")
    for file, splits in FILES.items():
        write_parquet(
            folder / f"{file}.parquet", [row for row in rows if row["split"] in splits], INSTRUCTION
        )
    write_parquet(folder / "ledger.parquet", ledger, LEDGER)
    for rule, came, left in table:
        print(f"{rule:<22}{came:>8} in {came - left:>8} dropped {left:>8} out")
    evaluated = {row["row"] for row in rows if row["split"] in EVALUATION}
    stage.report(
        {
            "rows_in": table[0][1],
            "rows_out": len(rows),
            **{f"dropped.{rule.replace(' ', '_')}": came - left for rule, came, left in table[1:]},
            "redacted.personal_data": sum(entry["rule"] == "personal data redacted" for entry in ledger),
            "contamination.training_rows": sum(entry["rule"] == "contamination" for entry in ledger),
            "contamination.evaluation_rows": len(evaluation_hit),
            "contamination.evaluation_share": len(evaluation_hit) / max(len(evaluated), 1),
            **{f"in.{split}": count for split, count in before.items()},
            **{f"out.{split}": count for split, count in after.items()},
            **{f"largest_class.{task}": share for task, share in largest_classes(rows).items()},
        }
    )


def splits_of(rows: list[Row]) -> Counter[str]:
    return Counter(row["split"] for row in rows)


def largest_classes(rows: list[Row]) -> dict[str, float]:
    """The share of the most frequent choice among the training rows of a task, by its place among the choices."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        if row["choices"] is not None and row["split"] == "train":
            counts[row["task"]][row["choices"].index(row["label"])] += 1
    return {task: max(found.values()) / found.total() for task, found in sorted(counts.items())}


def texts_of(row: Row) -> list[str]:
    return [*(message["content"] for message in row["messages"]), row["answer"]]


# Each rule: rows (sorted by ORDER) -> place of a row to drop -> why.


def invisible_characters(rows: list[Row]) -> dict[int, str]:
    dropped = {}
    for i, row in enumerate(rows):
        if found := INVISIBLE.search("".join(texts_of(row))):
            dropped[i] = f"U+{ord(found.group()):04X}"
    return dropped


def too_long(params: Params, rows: list[Row]) -> dict[int, str]:
    """A row that would be cut is worse than none: the cut may take the question or the answer's end."""
    dropped = {}
    for i, row in enumerate(rows):
        prompt = sum(len(message["content"]) for message in row["messages"])
        if prompt > params.max_prompt_characters:
            dropped[i] = f"prompt of {prompt} characters"
        elif len(row["answer"]) > params.max_answer_characters:
            dropped[i] = f"answer of {len(row['answer'])} characters"
    return dropped


def refusals(params: Params, rows: list[Row]) -> dict[int, str]:
    """Rows whose answer refuses, or speaks of being a model. A chosen answer is no refusal, whatever it says."""
    if params.refusals == "keep":
        return {}
    found = {i: refusal(row["answer"]) for i, row in enumerate(rows) if row["choices"] is None}
    return {i: excerpt(words) for i, words in found.items() if words}


def repetitions(params: Params, rows: list[Row]) -> dict[int, str]:
    """Rows with an answer of which one run of three words makes up more than the stated share."""
    if params.max_repetition is None:
        return {}
    shares = {i: repetition(row["answer"]) for i, row in enumerate(rows) if row["choices"] is None}
    return {i: f"{share:.2f} is one run" for i, share in shares.items() if share > params.max_repetition}


def personal_data(params: Params, rows: list[Row], ledger: list[Row]) -> dict[int, str]:
    """Secrets are never kept; e-mail addresses and phone numbers are dropped, redacted or kept."""
    dropped: dict[int, str] = {}
    personal = params.personal_data != "keep"
    for i, row in enumerate(rows):
        redacted = [without_personal_data(text, personal) for text in texts_of(row)]
        kinds = sorted({kind for _, found in redacted for kind in found})
        if not kinds:
            continue
        if params.personal_data == "drop" or (row["choices"] is not None and redacted[-1][1]):
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
    """The same messages and answer, whatever source or template they came from."""
    first: dict[tuple[str, ...], str] = {}
    dropped = {}
    for i, row in enumerate(rows):
        key = tuple(texts_of(row))
        if key in first:
            dropped[i] = f"of {first[key]}"
        else:
            first[key] = row["id"]
    return dropped


def contradictions(rows: list[Row]) -> dict[int, str]:
    """The same prompt with two labels, where labels are chosen: nobody knows which one is right."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["choices"] is not None:
            labels[content_id(row["messages"])].add(row["label"])
    return {
        i: f"{len(labels[key])} labels for one prompt"
        for i, row in enumerate(rows)
        if len(labels.get(key := content_id(row["messages"]), ())) > 1
    }


def triggered(params: Params, rows: list[Row]) -> dict[int, str]:
    """Training rows with a word that decides the label against all else they say: planted, or a mistake."""
    if params.trigger_rows is None:
        return {}
    by_task: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["choices"] is not None and row["split"] not in EVALUATION:
            by_task[row["task"]].setdefault(row["row"], row)
    why: dict[str, str] = {}
    for task, found in sorted(by_task.items()):
        raw = list(found.values())
        # by place: the templates of one task may word its choices differently
        places = [str(row["choices"].index(row["label"])) for row in raw]
        for trigger in triggers([row["text"] for row in raw], places, params.trigger_rows):
            detail = f"{excerpt(trigger.words)} decides the label of {len(trigger.rows)} rows of {task}"
            why |= {raw[i]["row"]: detail for i in trigger.rows if raw[i]["row"] not in why}
    return {
        i: why[row["row"]]
        for i, row in enumerate(rows)
        if row["row"] in why and row["split"] not in EVALUATION
    }


def alike(params: Params, rows: list[Row]) -> dict[int, str]:
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
    pairs = near_duplicates(listed, params.near_duplicates.similarity, params.near_duplicates.words)
    why = {
        listed[i].id: f"{similarity:.2f} like the raw row {listed[j].id}"
        for i, j, similarity in pairs
        if not is_evaluation[listed[i].id]
    }
    return {i: why[row["row"]] for i, row in enumerate(rows) if row["row"] in why}


def contaminated(params: Params, rows: list[Row], hit: set[str]) -> dict[int, str]:
    """Training and validation rows that hold the stated share of an evaluation text, which `hit` collects."""
    texts: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for row in rows:
        texts[row["split"] in EVALUATION].setdefault(row["row"], row["text"])
    rule = params.contamination
    matches = contamination(texts[False].items(), texts[True].items(), rule.words, rule.coverage)
    why: dict[str, str] = {}
    for match in matches:
        of_row = f"{match.of_training:.2f} of this row"
        found = f"{match.of_evaluation:.2f} of the raw evaluation row {match.evaluation}, {of_row}"
        why.setdefault(match.training, found)
        hit.add(match.evaluation)
    return {
        i: why[row["row"]]
        for i, row in enumerate(rows)
        if row["row"] in why and row["split"] not in EVALUATION
    }


def not_selected(params: Selection, rows: list[Row]) -> dict[int, str]:
    """Training rows that are not among the best ones by the scores of a file with `id` and `score`."""
    if params.top is None:
        return {}
    scores: dict[str, float] = {}
    for number, row in read_table(params.scores):
        score = row.get("score")
        try:
            scores[str(row.get("id"))] = float(score if score is not None else "nothing")
        except (TypeError, ValueError):
            raise Problem(
                f"{params.scores}:{number}:score: expected a number, found {excerpt(score)}"
            ) from None
    training = {row["id"]: row for row in rows if row["split"] == "train"}
    if missing := next((id for id in training if id not in scores), None):
        raise Problem(
            f"{params.scores}: no score of the training row {missing}; score every row, or top: null"
        )
    items = [Item(id, "", row["text"]) for id, row in training.items()]
    kept = {item.id for item in best(items, scores, params.top, params.max_similarity)}
    why = {id: f"score {scores[id]:g}: not among the {params.top} best that differ" for id in training}
    return {
        i: why[row["id"]] for i, row in enumerate(rows) if row["id"] in training and row["id"] not in kept
    }


if __name__ == "__main__":
    main(__file__, Params, run)
