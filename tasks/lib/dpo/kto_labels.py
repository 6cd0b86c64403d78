"""Single answers that are good or bad, for KTO (arXiv 2402.01306): by thumbs, or by the pairs of rankings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row, content_id
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.stage import Problem


def labels_of_pairs(pairs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows {prompt, answer, label} from pairs {prompt, chosen, rejected}.

    The label is True for an answer that wins more pairs than it loses and False for one that loses more; an answer
    that does neither is left out.
    """
    votes: list[tuple[Any, str, int]] = []
    for pair in pairs:
        votes.append((pair["prompt"], pair["chosen"], 1))
        votes.append((pair["prompt"], pair["rejected"], -1))
    return _labels(votes)


def labels_of_ratings(ratings: Iterable[Mapping[str, Any]], attribute: str) -> list[Row]:
    """The same from rows of the schema RATING: True where most annotators gave more than 0, even votes left out."""
    votes: list[tuple[Any, str, int]] = []
    for rating in ratings:
        if rating["attribute"] == attribute:
            votes.append((rating["prompt"], rating["answer"], 1 if rating["value"] > 0 else -1))
    return _labels(votes)


def _labels(votes: Iterable[tuple[Any, str, int]]) -> list[Row]:
    """Rows {prompt, answer, label} of votes (prompt, answer, 1 or -1): the sign of an answer's sum; 0 is left out."""
    prompts: dict[str, Any] = {}
    sums: Counter[tuple[str, str]] = Counter()
    for prompt, answer, vote in votes:
        key = prompt_key(prompt)
        prompts.setdefault(key, prompt)
        sums[key, answer] += vote
    rows: list[Row] = []
    for (key, answer), total in sums.items():
        if total != 0:
            rows.append({"prompt": prompts[key], "answer": answer, "label": total > 0})
    return rows


def tokenize_answers(
    tokenizer: Any, answers: Iterable[Row], max_length: int | None, path: Path
) -> tuple[list[Row], int]:
    """Labelled answers as the token ids that TRL's collator takes, and how many were left out as too long.

    Rows are {row, id, label, prompt_ids, completion_ids}, in the order of their hashes, so that neighbours have
    different prompts (`with_mismatched_answers`). Problem unless there are good and bad ones; it names `path`.
    """
    rows: list[Row] = []
    too_long = 0
    for answer in sorted(answers, key=content_id):
        ids = {"prompt_ids": prompt_ids(tokenizer, answer["prompt"])}
        ids["completion_ids"] = answer_ids(tokenizer, answer["answer"])
        if max_length is not None and answer_length(ids) > max_length:
            too_long += 1
        else:
            rows.append({"row": len(rows), "id": content_id(answer), "label": answer["label"], **ids})
    good = sum(row["label"] for row in rows)
    bad = len(rows) - good
    if good == 0 or bad == 0:
        raise Problem(f"{path}: kto needs good and bad answers, found {good} and {bad}")
    return rows, too_long


def answer_length(row: Mapping[str, Any]) -> int:
    """Tokens of a prompt with its answer."""
    return len(row["prompt_ids"]) + len(row["completion_ids"])


def with_mismatched_answers(collate: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
    """A collator that also gives each row of a batch the answer of the row before it.

    From such mismatched pairs KTO estimates the KL (section 4.1). TRL makes them before training, for batches that
    never change; here batches are shuffled.
    """

    def collate_mismatched(rows: list[Row]) -> Any:
        rows_before = [rows[-1], *rows[:-1]]
        completed: list[Row] = []
        for row, before in zip(rows, rows_before, strict=True):
            completed.append({**row, "KL_completion_ids": before["completion_ids"]})
        return collate(completed)

    return collate_mismatched
