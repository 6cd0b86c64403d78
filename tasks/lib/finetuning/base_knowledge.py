"""What a model knows before it is trained: its facts in the four classes of Gekhman et al. (arXiv 2405.05904).

A model learns facts that it does not know slowly, and they teach it to make things up; so a report should say how
many there are. Table 1 of the paper: a fact is highly known when every greedy answer is right, maybe known when some
are, weakly known when only a sample (temperature 0.5) is, else unknown. The paper varies the examples in the prompt;
here the templates of a raw row vary, so that a row with one template cannot be maybe known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    room = getattr(model.config, "max_position_embeddings", None) or float("inf")
    asked: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["row"]):
        asked.setdefault(row["row"], []).append(row)
    chosen = [row for fact in list(asked)[:count] for row in asked[fact]]
    longest = max((len(answer_ids(tokenizer, row["answer"])) for row in chosen), default=0)
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in chosen]
    fits = [place for place, prompt in enumerate(prompts) if len(prompt) + longest <= room]
    if not fits:
        raise Problem("sft.known_facts: no prompt leaves room for an answer; set it to 0")
    settings: dict[str, Any] = {
        "eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id, "max_new_tokens": longest,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    questions = [prompts[place] for place in fits]
    greedy = generate(model, questions, temperature=0.0, **settings)
    drawn = generate(model, questions, temperature=TEMPERATURE, draws=DRAWS, **settings)
    found: dict[str, tuple[list[bool], list[bool]]] = {}
    for number, place in enumerate(fits):
        row = chosen[place]
        right = [
            answer_text(tokenizer, ids) == row["answer"].strip()
            for ids in (greedy[number], *drawn[number * DRAWS : (number + 1) * DRAWS])
        ]
        of_greedy, of_drawn = found.setdefault(row["row"], ([], []))
        of_greedy.append(right[0])
        of_drawn += right[1:]
    classes = [class_of(*answers) for answers in found.values()]
    return {"facts": len(classes)} | {name: classes.count(name) / len(classes) for name in CLASSES}
