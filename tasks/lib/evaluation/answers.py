"""What one model says to the held-out rows: greedy answers, its choice among options, samples for the KL."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.lib.evaluation.judge import Panel
from tasks.lib.evaluation.scores import exact_match, rank_choices, sequence_kl
from tasks.lib.models.chat import all_answer_ids, all_prompt_ids, answer_text
from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logprobs

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Encoded:
    """The rows as ids of one tokenizer: made once, because most models of a line have the same."""

    spelling: str  # vocabulary and chat template: where they are equal, the ids are
    prompts: list[list[int]]
    choices: list[list[list[int]]]  # empty where a row has none


@dataclass(frozen=True)
class Answers:
    """One model's answers, in the order of the rows."""

    texts: list[str]
    tokens: list[int]  # length of the answer without EOS
    ended: list[bool]  # the answer ended by itself, by EOS
    choices: list[str | None]  # the likeliest of the row's choices; None where it has none

    def columns(self, rows: Sequence[Row], panel: Panel | None) -> dict[str, np.ndarray]:
        """What can be said without another model: metric -> (N,) values, NaN where it does not apply."""
        labels = [row["label"] for row in rows]
        judged = list(zip(labels, self.texts, self.choices, strict=True))
        columns: dict[str, list[float]] = {
            "exact_match": [exact_match(text, label, panel) for label, text, _ in judged],
            "rank_classification": [
                math.nan if choice is None else exact_match(choice, label, panel) for label, _, choice in judged
            ],
            "tokens": [float(count) for count in self.tokens],
            "ended": [float(ended) for ended in self.ended],
        }
        if panel:
            columns["closing"] = [panel.has_closing(text) for text in self.texts]
            columns["gold"] = [panel.utility(label, text) for label, text, _ in judged]
        return {name: np.array(values, dtype=np.float64) for name, values in columns.items()}


@dataclass(frozen=True)
class Samples:
    """Answers drawn at temperature 1 to the rows `places`, as ids, and their log-probabilities (T,)."""

    places: list[int]
    prompts: list[list[int]]
    answers: list[list[int]]
    logprobs: list[torch.Tensor]

    def kl_from(self, reference: Any, count: int, batch_size: int) -> np.ndarray:
        """The estimated KL from `reference`, nats per answer: (count,), NaN where nothing was drawn."""
        under_reference = answer_logprobs(reference, self.prompts, self.answers, batch_size=batch_size)
        values = np.full(count, math.nan)
        values[self.places] = sequence_kl(self.logprobs, under_reference)
        return values


def spelling(tokenizer: Any) -> str:
    """Vocabulary and chat template as text: equal for tokenizers that give the same ids."""
    return json.dumps([tokenizer.get_vocab(), tokenizer.chat_template], sort_keys=True)


def encoded(tokenizer: Any, rows: Sequence[Row], known: Encoded | None = None) -> Encoded:
    """The rows as ids of the tokenizer; `known` itself if it comes from an equal one."""
    if known and known.spelling == spelling(tokenizer):
        return known
    return Encoded(
        spelling(tokenizer),
        all_prompt_ids(tokenizer, [row["messages"] for row in rows]),
        [all_answer_ids(tokenizer, row["choices"] or ()) for row in rows],
    )


def answer_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    ids_of: Encoded,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Answers:
    """Answer every row greedily, and rank the choices of those that have some."""
    ids = _generate(model, tokenizer, ids_of.prompts, 0.0, max_new_tokens, batch_size, seed=0)
    ended = [bool(each) and each[-1] == tokenizer.eos_token_id for each in ids]
    closed = [place for place, row in enumerate(rows) if row["choices"]]
    best = rank_choices(
        model,
        [ids_of.prompts[place] for place in closed],
        [ids_of.choices[place] for place in closed],
        batch_size=batch_size,
    )
    chosen: list[str | None] = [None] * len(rows)
    for place, index in zip(closed, best, strict=True):
        chosen[place] = rows[place]["choices"][index]
    return Answers(
        texts=[answer_text(tokenizer, each) for each in ids],
        tokens=[len(each) - by_eos for each, by_eos in zip(ids, ended, strict=True)],
        ended=ended,
        choices=chosen,
    )


def sample_rows(
    model: Any,
    tokenizer: Any,
    ids_of: Encoded,
    places: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Samples:
    """Draw one answer at temperature 1 to each of the rows `places`: what a KL is estimated on."""
    prompts = [ids_of.prompts[place] for place in places]
    answers = _generate(model, tokenizer, prompts, 1.0, max_new_tokens, batch_size, seed)
    logprobs = answer_logprobs(model, prompts, answers, batch_size=batch_size)
    return Samples(list(places), prompts, answers, logprobs)


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> list[list[int]]:
    return generate(
        model,
        prompts,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
    )
