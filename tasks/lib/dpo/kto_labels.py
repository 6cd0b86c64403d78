"""Answers that are good or bad by themselves, for KTO (arXiv 2402.01306): thumbs, or what rankings say of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import content_id
from tasks.lib.models.chat import answer_ids, prompt_ids

Row = dict[str, Any]


def labels_of_pairs(pairs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows {prompt, answer, label}: True for an answer that wins more of its decided pairs {prompt, chosen, rejected}
    than it loses, False for one that loses more; as many of each are left out."""
    votes = []
    for pair in pairs:
        votes += [(pair["prompt"], pair["chosen"], 1), (pair["prompt"], pair["rejected"], -1)]
    return _labels(votes)


def labels_of_ratings(ratings: Iterable[Mapping[str, Any]], attribute: str) -> list[Row]:
    """The same from rows of the schema RATING: True where most annotators gave more than 0, even votes left out."""
    rated = [row for row in ratings if row["attribute"] == attribute]
    return _labels((row["prompt"], row["answer"], 1 if row["value"] > 0 else -1) for row in rated)


def _labels(votes: Iterable[tuple[Any, str, int]]) -> list[Row]:
    """Rows of votes (prompt, answer, 1 or -1): the sign of an answer's sum; 0 is left out."""
    prompts: dict[str, Any] = {}
    sums: Counter[tuple[str, str]] = Counter()
    for prompt, answer, vote in votes:
        key = prompt_key(prompt)
        prompts.setdefault(key, prompt)
        sums[key, answer] += vote
    return [
        {"prompt": prompts[key], "answer": answer, "label": total > 0} for (key, answer), total in sums.items() if total
    ]


def unpaired_ids(tokenizer: Any, rows: Iterable[Row], max_length: int | None) -> tuple[list[Row], int]:
    """Rows as the ids that TRL's collator takes, in the order of their hashes, so that neighbours have other prompts;
    and how many were left out because they are longer than `max_length`."""
    found: list[Row] = []
    too_long = 0
    for identity, row in sorted((content_id(row), row) for row in rows):
        ids = {"prompt_ids": prompt_ids(tokenizer, row["prompt"])}
        ids |= {"completion_ids": answer_ids(tokenizer, row["answer"])}
        if max_length is not None and sum(map(len, ids.values())) > max_length:
            too_long += 1
        else:
            found.append({"row": len(found), "id": identity, "label": row["label"], **ids})
    return found, too_long


def mismatched(collate: Callable[[list[Row]], Any]) -> Callable[[list[Row]], Any]:
    """A collator that gives each row of a batch the answer of the one before it, by which KTO estimates the KL
    (section 4.1). TRL fixes these pairs before training, for batches that never change; here batches are shuffled.
    """

    def collated(rows: list[Row]) -> Any:
        others = [rows[-1], *rows[:-1]]
        pairs = zip(rows, others, strict=True)
        return collate([{**row, "KL_completion_ids": other["completion_ids"]} for row, other in pairs])

    return collated
