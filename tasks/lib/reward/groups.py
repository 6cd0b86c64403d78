"""All rankings of one prompt together, so that an answer is scored once, however many annotators rank it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import Messages
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.reward.reward_model import heads_of, raw_outputs

NOT_RANKED = -1  # in place of a rank


@dataclass(frozen=True)
class Group:
    """One prompt with all its answers, each once, and every annotator's ranks of them."""

    prompt_key: str
    prompt: Messages
    answers: list[str] = field(default_factory=list)
    ranks: list[list[int]] = field(default_factory=list)  # per ranking the rank of each answer, or NOT_RANKED
    rows: list[str] = field(default_factory=list)  # ids of the rankings
    annotators: list[str] = field(default_factory=list)  # of each ranking
    strengths: list[float] = field(default_factory=list)  # of each ranking, 0 to 1; 0 where none is given
    sequences: list[list[int]] = field(default_factory=list)  # ids of prompt, answer and EOS per answer, once tokenized


def grouped(rankings: Iterable[Row]) -> list[Group]:
    """Rankings (rows of the schema RANKING) by prompt, in the order of the prompts' keys."""
    by_prompt: dict[str, list[Row]] = {}
    for ranking in rankings:
        by_prompt.setdefault(prompt_key(ranking["prompt"]), []).append(ranking)
    return [_group(key, by_prompt[key]) for key in sorted(by_prompt)]


def _group(key: str, rankings: list[Row]) -> Group:
    group = Group(key, rankings[0]["prompt"])
    for ranking in rankings:
        for answer in ranking["answers"]:
            if answer not in group.answers:
                group.answers.append(answer)
    for ranking in rankings:
        rank_of = dict(zip(ranking["answers"], ranking["ranks"], strict=True))
        group.ranks.append([rank_of.get(answer, NOT_RANKED) for answer in group.answers])
        group.rows.append(ranking["id"])
        group.annotators.append(ranking.get("annotator", ""))
        group.strengths.append(ranking.get("strength") or 0.0)
    return group


def tokenize(tokenizer: Any, groups: Sequence[Group], room: int | None) -> list[Group]:
    """The groups with the ids of prompt, answer and EOS of each answer.

    A group with an answer of more than `room` tokens is left out: cut answers may be equal.
    """
    fitting = []
    for group in groups:
        prompt = prompt_ids(tokenizer, group.prompt)
        sequences = [prompt + answer_ids(tokenizer, answer) for answer in group.answers]
        longest = max(sequences, key=len)
        if not room or len(longest) <= room:
            fitting.append(replace(group, sequences=sequences))
    return fitting


def all_sequences(groups: Sequence[Group]) -> list[list[int]]:
    """The sequences of all answers of tokenized groups, in their order."""
    sequences: list[list[int]] = []
    for group in groups:
        sequences += group.sequences
    return sequences


def group_heads(model: Any, groups: Sequence[Group], *, batch_size: int) -> list[Tensor]:
    """Raw rewards (K, heads) of the K answers of every tokenized group."""
    by_head = heads_of(model, raw_outputs(model, all_sequences(groups), batch_size=batch_size))
    return list(by_head.split([len(group.sequences) for group in groups]))


def batch_ranks(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """(places, ranks), both (R, K): all R rankings of some prompts, padded to the largest number K of answers.

    A place is the number of the answer among all answers of these prompts, as in `all_sequences`. Padding has place 0
    and the rank NOT_RANKED.
    """
    width = max(len(group.answers) for group in groups)
    places: list[list[int]] = []
    ranks: list[list[int]] = []
    first = 0  # place of the group's first answer
    for group in groups:
        end = first + len(group.answers)
        padding = width - len(group.answers)
        for ranking in group.ranks:
            places.append([*range(first, end)] + [0] * padding)
            ranks.append(ranking + [NOT_RANKED] * padding)
        first = end
    return torch.tensor(places), torch.tensor(ranks)
