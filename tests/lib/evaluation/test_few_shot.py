"""Examples come from the training rows, the nearest kind first, and prompts that hold them fit into the model."""

from __future__ import annotations

from typing import Any

from tiny_models import tiny_tokenizer

from tasks.lib.evaluation.few_shot import examples_of, few_shot_prompts, with_examples
from tasks.lib.models.chat import prompt_ids


def row(name: str, task: str, template: str, text: str = "Say red", answer: str = "red") -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"id": name, "task": task, "template": template, "messages": messages, "answer": answer}


TRAINING = [
    *(row(f"a{number}", "a", "a/one") for number in range(6)),
    *(row(f"b{number}", "a", "a/two") for number in range(6)),
    *(row(f"c{number}", "c", "c/one") for number in range(6)),
]


def names(row: dict[str, Any], count: int = 4, training: list[dict[str, Any]] = TRAINING) -> list[str]:
    return [example["id"] for example in examples_of([row], training, count)[0]]


def test_examples_are_of_the_template_else_of_the_task_else_of_any_task() -> None:
    assert {name[0] for name in names(row("x", "a", "a/two"), 6)} == {"b"}
    assert {name[0] for name in names(row("x", "a", "a/heldout"), 12)} == {"a", "b"}
    assert {name[0] for name in names(row("x", "heldout", "heldout/one"), 18)} == {"a", "b", "c"}
    assert names(row("x", "a", "a/one"), training=[]) == []


def test_examples_are_different_ones_and_depend_on_the_row_but_on_no_order() -> None:
    chosen = [tuple(names(row(f"x{number}", "a", "a/one"))) for number in range(20)]
    assert all(len(set(of_row)) == 4 for of_row in chosen)
    assert len({of_row[0] for of_row in chosen}) > 3  # where they begin differs from row to row
    assert chosen == [tuple(names(row(f"x{n}", "a", "a/one"), training=TRAINING[::-1])) for n in range(20)]
    assert len(names(row("x", "a", "a/one"), 9)) == 6  # no more than there are


def test_the_rows_own_system_message_stays_first_and_those_of_the_examples_are_left_out() -> None:
    system, question = {"role": "system", "content": "be brief"}, {"role": "user", "content": "Say blue"}
    example = row("e", "a", "a/one")
    example["messages"] = [{"role": "system", "content": "other"}, *example["messages"]]
    assert with_examples([system, question], [example]) == [
        system, {"role": "user", "content": "Say red"}, {"role": "assistant", "content": "red"}, question,
    ]  # fmt: skip


def test_the_last_examples_go_until_the_prompt_fits() -> None:
    tokenizer = tiny_tokenizer()
    question, examples = row("x", "a", "a/one", "Say blue"), [TRAINING[0]] * 3
    lengths: list[int] = []
    for count in range(4):
        lengths.append(len(prompt_ids(tokenizer, with_examples(question["messages"], examples[:count]))))
    for longest, expected in [(lengths[3], 3), (lengths[3] - 1, 2), (lengths[1], 1), (lengths[0], 0), (1, 0)]:
        prompts, kept = few_shot_prompts(tokenizer, [question, question], [examples, examples[:1]], longest)
        assert kept == [expected, min(expected, 1)]
        assert [len(prompt) for prompt in prompts] == [lengths[count] for count in kept]
