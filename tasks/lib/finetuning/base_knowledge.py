"""What a model knows before it is trained: its facts in the four classes of Gekhman et al. (arXiv 2405.05904).

A model learns facts that it does not know slowly, and they teach it to make things up; so a report should say how
many there are. Table 1 of the paper: a fact is highly known when every greedy answer is right, maybe known when some
are, weakly known when only a sample (temperature 0.5) is, else unknown. The paper varies the examples in the prompt;
here the templates of a raw row vary, so that a row with one template cannot be maybe known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tasks.lib.models.chat import answer_ids, answer_text, prompt_ids
from tasks.lib.models.generation import generate
from tasks.lib.stage import Problem

CLASSES = ("highly_known", "maybe_known", "weakly_known", "unknown")
DRAWS, TEMPERATURE = 4, 0.5


def class_of(greedy: Sequence[bool], sampled: Sequence[bool]) -> str:
    """The class of a fact, by which of its greedy and of its sampled answers are right."""
    if any(greedy):
        return "highly_known" if all(greedy) else "maybe_known"
    return "weakly_known" if any(sampled) else "unknown"


def known_facts(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], count: int, *, batch_size: int, seed: int
) -> dict[str, float]:
    """Shares of the four classes among `count` facts, and `facts`, how many were asked. {} for count 0.

    Rows have `row` (the fact, a hash: the first are a fair sample), `messages` and `answer`. An answer is right
    when its text is the row's. Facts whose prompts and answers do not fit the model are left out.
    """
    if not count:
        return {}
    asked, questions, longest = _questions(model, tokenizer, rows, count)
    settings: dict[str, Any] = {
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "max_new_tokens": longest,
        "batch_size": batch_size,
        "seed": seed,
    }
    greedy = generate(model, questions, temperature=0.0, **settings)
    sampled = generate(model, questions, temperature=TEMPERATURE, draws=DRAWS, **settings)
    right_greedy: dict[str, list[bool]] = {}
    right_sampled: dict[str, list[bool]] = {}
    for number, row in enumerate(asked):
        expected = row["answer"].strip()
        drawn = sampled[number * DRAWS : (number + 1) * DRAWS]
        right_greedy.setdefault(row["row"], []).append(answer_text(tokenizer, greedy[number]) == expected)
        right_sampled.setdefault(row["row"], []).extend(answer_text(tokenizer, ids) == expected for ids in drawn)
    classes = [class_of(right_greedy[fact], right_sampled[fact]) for fact in right_greedy]
    shares: dict[str, float] = {"facts": len(classes)}
    for name in CLASSES:
        shares[name] = classes.count(name) / len(classes)
    return shares


def _questions(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], count: int
) -> tuple[list[Mapping[str, Any]], list[list[int]], int]:
    """The rows of the first `count` facts that fit the model, their prompts, and the tokens of the longest answer."""
    room = getattr(model.config, "max_position_embeddings", None) or float("inf")
    of_fact: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["row"]):
        of_fact.setdefault(row["row"], []).append(row)
    chosen = list(chain.from_iterable(list(of_fact.values())[:count]))
    longest = max((len(answer_ids(tokenizer, row["answer"])) for row in chosen), default=0)
    asked, questions = [], []
    for row in chosen:
        prompt = prompt_ids(tokenizer, row["messages"])
        if len(prompt) + longest <= room:
            asked.append(row)
            questions.append(prompt)
    if not asked:
        raise Problem("sft.known_facts: no prompt leaves room for an answer; set it to 0")
    return asked, questions, longest
