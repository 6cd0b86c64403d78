"""The base model with a few-shot prompt: what prompting alone makes of the training rows.

Solved training examples come before a row as earlier turns of its conversation (Brown et al. 2020, arXiv 2005.14165,
section 2). A held-out row never is an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.lib.data.rows import content_id
from tasks.lib.models.chat import all_prompt_ids

Row = Mapping[str, Any]
Example = Mapping[str, Any]  # a training row, with EXAMPLE_COLUMNS
EXAMPLE_COLUMNS = ["id", "task", "template", "messages", "answer"]


def examples_of(rows: Sequence[Row], training: Sequence[Example], count: int) -> list[list[Example]]:
    """Up to `count` training rows for each row: of its template, else of its task, else of any task.

    A held-out template has examples in other words, a held-out task examples of other tasks, which show the form of
    an answer at least. The examples stand in the order of their hashes, and a hash of the row says where its own begin:
    the order of the files does not matter, nor do the other rows.
    """
    pools: dict[tuple[str, ...], list[Example]] = {}
    for example in sorted(training, key=lambda example: content_id("few_shot", example["id"])):
        for key in _keys(example):
            pools.setdefault(key, []).append(example)
    examples: list[list[Example]] = []
    for row in rows:
        pool = next((pools[key] for key in _keys(row) if key in pools), [])
        start = int(content_id("few_shot", row["id"]), 16)
        examples.append([pool[(start + step) % len(pool)] for step in range(min(count, len(pool)))])
    return examples


def _keys(row: Row) -> list[tuple[str, ...]]:
    """The pools that a row is in, narrow ones first."""
    return [(row["task"], row["template"]), (row["task"],), ()]


def with_examples(messages: Sequence[dict[str, str]], examples: Sequence[Example]) -> list[dict[str, str]]:
    """The conversation with the examples' turns in front. Its system message stays first, theirs are left out."""
    head = [message for message in messages if message["role"] == "system"]
    turns: list[dict[str, str]] = []
    for example in examples:
        turns += [message for message in example["messages"] if message["role"] != "system"]
        turns.append({"role": "assistant", "content": example["answer"]})
    return [*head, *turns, *(message for message in messages if message["role"] != "system")]


def few_shot_prompts(
    tokenizer: Any, rows: Sequence[Row], examples: Sequence[Sequence[Example]], longest: float
) -> tuple[list[list[int]], list[int]]:
    """Per row its prompt as ids, and how many of its examples are in it: the last ones go until it has `longest` ids.

    A prompt that is too long without examples stays as it is.
    """
    prompts: list[list[int]] = [[] for _ in rows]
    kept = [len(of_row) for of_row in examples]
    waiting = list(range(len(rows)))
    while waiting:
        talks = [with_examples(rows[place]["messages"], examples[place][: kept[place]]) for place in waiting]
        too_long: list[int] = []
        for place, prompt in zip(waiting, all_prompt_ids(tokenizer, talks), strict=True):
            prompts[place] = prompt
            if len(prompt) > longest and kept[place]:
                kept[place] -= 1
                too_long.append(place)
        waiting = too_long
    return prompts, kept
