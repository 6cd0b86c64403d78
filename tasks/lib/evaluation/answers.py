"""What one model answers to the held-out rows: greedy answers, its choice among options, samples for the KL."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.lib.evaluation.panel import Panel
from tasks.lib.evaluation.scores import answer_scores, exact_match, rank_choices, sequence_kl
from tasks.lib.models.chat import all_answer_ids, all_prompt_ids, answer_text
from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logprobs

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TokenizedRows:
    """The rows as ids of one tokenizer: made once, because most models of a pipeline have the same."""

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
        """What needs no other model: metric -> (N,) values, NaN where it does not apply."""
        columns: dict[str, Sequence[float]] = {**answer_scores(rows, self.texts, panel)}
        ranked: list[float] = []
        for row, choice in zip(rows, self.choices, strict=True):
            ranked.append(math.nan if choice is None else exact_match(choice, row["label"], panel))
        columns |= {"rank_classification": ranked, "tokens": self.tokens, "ended": self.ended}
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


def tokenize_rows(tokenizer: Any, rows: Sequence[Row], known: TokenizedRows | None = None) -> TokenizedRows:
    """The rows as ids of the tokenizer; `known` itself if it comes from an equal one."""
    if known and known.spelling == spelling(tokenizer):
        return known
    return TokenizedRows(
        spelling(tokenizer),
        all_prompt_ids(tokenizer, [row["messages"] for row in rows]),
        [all_answer_ids(tokenizer, row["choices"] or ()) for row in rows],
    )


def answer_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    tokenized: TokenizedRows,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Answers:
    """Answer every row greedily, and rank the choices of those that have some."""
    answers = _generate(model, tokenizer, tokenized.prompts, 0.0, max_new_tokens, batch_size, seed=0)
    texts: list[str] = []
    tokens: list[int] = []
    ended: list[bool] = []
    for ids in answers:
        ends = bool(ids) and ids[-1] == tokenizer.eos_token_id
        texts.append(answer_text(tokenizer, ids))
        tokens.append(len(ids) - ends)
        ended.append(ends)

    with_choices = [place for place, row in enumerate(rows) if row["choices"]]
    prompts = [tokenized.prompts[place] for place in with_choices]
    choices = [tokenized.choices[place] for place in with_choices]
    best = rank_choices(model, prompts, choices, batch_size=batch_size)
    chosen: list[str | None] = [None] * len(rows)
    for place, index in zip(with_choices, best, strict=True):
        chosen[place] = rows[place]["choices"][index]
    return Answers(texts, tokens, ended, chosen)


def sample_rows(
    model: Any,
    tokenizer: Any,
    tokenized: TokenizedRows,
    places: Sequence[int],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Samples:
    """Draw one answer at temperature 1 to each of the rows `places`: what a KL is estimated on."""
    prompts = [tokenized.prompts[place] for place in places]
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
