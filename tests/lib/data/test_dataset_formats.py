"""Ready-made sets become conversations that end in an answer; a row that does not is named."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.lib.data.dataset_formats import SHAPES
from tasks.lib.stage import Problem


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return [*first, *({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))]


GOOD: dict[str, tuple[str, dict[str, Any], list[list[dict[str, str]]]]] = {
    "alpaca": ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, [turns("Add.\n\n1 2", "3")]),
    "alpaca without input": (
        "alpaca",
        {"instruction": "Hi", "output": "Ho", "system": "Be brief."},
        [turns("Hi", "Ho", system="Be brief.")],
    ),
    "messages": ("messages", {"messages": turns("a", "b", "c", "d", system="s"), "id": 1},
                 [turns("a", "b", "c", "d", system="s")]),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [turns("a", "b")],
    ),
    "prompt and completion": ("prompt_completion", {"prompt": "a", "completion": "b"}, [turns("a", "b")]),
    "self-instruct": (
        "self_instruct",
        {"instruction": "Go", "instances": [{"input": "", "output": "x"}, {"input": "1", "output": "y"}]},
        [turns("Go", "x"), turns("Go\n\n1", "y")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape, row, made", GOOD.values(), ids=GOOD)
def test_a_row_becomes_its_conversations(shape: str, row: dict[str, Any], made: Any) -> None:
    assert [conversation for _, conversation in SHAPES[shape]("f:1", row)] == made


BAD = {
    "a missing field": ("alpaca", {"instruction": "a"}, "f:1:output: expected str, found no such field"),
    "a number": ("prompt_completion", {"prompt": "a", "completion": 3}, "f:1:completion: expected str, found int"),
    "no answer": ("messages", {"messages": turns("a")}, "f:1:messages: expected user and assistant by turns"),
    "two users": (
        "messages",
        {"messages": [turns("a")[0], turns("b")[0]]},
        "an answer last, found 'user user'",
    ),
    "an odd role": (
        "sharegpt",
        {"conversations": [{"from": "tool", "value": "a"}]},
        "f:1:conversations.1.from: expected one of",
    ),
    "no turns": ("messages", {"messages": []}, "f:1:messages: expected a list that is not empty"),
    "an instance that is a text": (
        "self_instruct",
        {"instruction": "a", "instances": ["b"]},
        "f:1:instances.1: expected an object, found str 'b'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape, row, message", BAD.values(), ids=BAD)
def test_a_row_of_another_shape_is_named(shape: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem) as caught:
        list(SHAPES[shape]("f:1", row))
    assert message in str(caught.value)
