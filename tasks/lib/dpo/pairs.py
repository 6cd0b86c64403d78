"""Rankings as pairs for DPO: the answers that most annotators prefer, as text and as token ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.annotation.agreement import majority, verdicts, with_prompt_keys
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row, content_id
from tasks.lib.models.chat import all_answer_ids, all_prompt_ids
from tasks.lib.stage import Problem

Preference = tuple[str, str]  # (the better answer, the worse one)


def pairs_of(rankings: Iterable[Row], per_prompt: int | None = None) -> tuple[list[Row], dict[str, int]]:
    """Pairs {prompt, chosen, rejected} that most annotators of a prompt agree on, and figures for the report.

    Annotators vote on every two answers of a prompt; ties, and pairs without a majority, are left out. Kept are the
    `per_prompt` pairs whose answers win most often (None: all): two good answers teach more than a good one and
    nonsense, which the model would not say anyway; and every prompt weighs about the same.
    """
    keyed = with_prompt_keys(rankings)
    prompts: dict[str, Any] = {}  # of the spellings of one prompt the first
    for ranking in keyed:
        prompts.setdefault(ranking["prompt_key"], ranking["prompt"])

    preferences: dict[str, list[Preference]] = {key: [] for key in prompts}
    ties_and_draws = 0  # an annotator's tie counts one, and so does a pair whose votes balance
    for (key, a, b), vote_of in verdicts(keyed).items():
        votes = list(vote_of.values())
        ties = votes.count(0)
        ties_and_draws += ties
        winner = majority(votes)
        if winner > 0:
            preferences[key].append((a, b))
        elif winner < 0:
            preferences[key].append((b, a))
        elif ties < len(votes):
            ties_and_draws += 1

    pairs: list[Row] = []
    for key, of_prompt in preferences.items():
        for chosen, rejected in _best_first(of_prompt)[:per_prompt]:
            pairs.append({"prompt": prompts[key], "chosen": chosen, "rejected": rejected})
    annotators = {ranking["annotator"] for ranking in keyed}
    return pairs, {"prompts": len(prompts), "annotators": len(annotators), "ties_and_draws": ties_and_draws}


def _best_first(preferences: Sequence[Preference]) -> list[Preference]:
    """The preferences among the answers to one prompt by the wins of the better answer, then of the worse one."""
    wins = Counter(better for better, _ in preferences)

    def place(preference: Preference) -> tuple[int, int, Preference]:
        better, worse = preference
        return -wins[better], -wins[worse], preference

    return sorted(preferences, key=place)


def tokenize_pairs(tokenizer: Any, pairs: Sequence[Row], max_length: int | None, path: Path) -> tuple[list[Row], int]:
    """Pairs as the token ids that TRL's collator takes, and how many were left out as longer than `max_length`.

    A row has its number `row`, its `id`, its prompt's `key`, prompt_ids, chosen_ids and rejected_ids. Problem when
    nothing is left, or when two answers of a pair are equal as tokens; `path` is the file that the message names.
    """
    prompts = all_prompt_ids(tokenizer, [pair["prompt"] for pair in pairs])
    chosen = all_answer_ids(tokenizer, [pair["chosen"] for pair in pairs])
    rejected = all_answer_ids(tokenizer, [pair["rejected"] for pair in pairs])
    rows: list[Row] = []
    for pair, prompt_ids, chosen_ids, rejected_ids in zip(pairs, prompts, chosen, rejected, strict=True):
        if chosen_ids == rejected_ids:
            prompt = pair["prompt"][-1]["content"][:60]
            raise Problem(f"{path}: two answers to {prompt!r} are equal, but one is preferred; drop one")
        row: Row = {"row": len(rows), "id": content_id(pair), "key": prompt_key(pair["prompt"])}
        row |= {"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
        if max_length is None or pair_length(row) <= max_length:
            rows.append(row)
    if not pairs:
        raise Problem(f"{path}: no pairs to use: there are only ties")
    if not rows:
        raise Problem(
            f"{path}: no pairs to use: all {len(pairs)} are longer than dpo.trainer.max_length = {max_length}"
        )
    return rows, len(pairs) - len(rows)


def pair_length(row: Row) -> int:
    """Tokens of the longer of a pair's two sequences."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def rows_by_prompt(rows: Iterable[Row]) -> list[list[int]]:
    """The numbers of the rows of each prompt."""
    numbers: dict[str, list[int]] = {}
    for row in rows:
        numbers.setdefault(row["key"], []).append(row["row"])
    return list(numbers.values())
