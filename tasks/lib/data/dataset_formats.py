"""Ready-made instruction sets: rows in the shapes that people publish, as conversations that end in an answer.

Fields that a shape does not know are left alone: published sets carry ids, scores and languages of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.row_problems import Row, fail, kind_of
from tasks.lib.data.rows import ROLES

Conversation = list[dict[str, str]]  # {role, content}; the last one is the assistant's answer


def _text(where: str, row: Row, name: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if value is None and default is not None:
        return default
    if name not in row and default is None:
        fail(f"{where}:{name}", "str", "no such field")
    if not isinstance(value, str):
        fail(f"{where}:{name}", "str", f"{kind_of(value)} {excerpt(value)}")
    return value


def _list(where: str, row: Row, name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        fail(f"{where}:{name}", "a list that is not empty", f"{kind_of(value)} {excerpt(value)}")
    return value


def _conversation(system: str, question: str, answer: str) -> Conversation:
    turns: Conversation = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if system.strip():
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _with_input(instruction: str, given: str) -> str:
    if not given.strip():
        return instruction
    return f"{instruction.strip()}\n\n{given.strip()}"


def _alpaca(where: str, row: Row) -> Iterator[tuple[str, Conversation]]:
    """{instruction, input, output}; input and system may be missing."""
    question = _with_input(_text(where, row, "instruction"), _text(where, row, "input", ""))
    yield where, _conversation(_text(where, row, "system", ""), question, _text(where, row, "output"))


def _prompt_completion(where: str, row: Row) -> Iterator[tuple[str, Conversation]]:
    """{prompt, completion}"""
    yield where, _conversation("", _text(where, row, "prompt"), _text(where, row, "completion"))


def _self_instruct(where: str, row: Row) -> Iterator[tuple[str, Conversation]]:
    """{instruction, instances: [{input, output}]}: every instance is a row."""
    instruction = _text(where, row, "instruction")
    for number, instance in enumerate(_list(where, row, "instances"), 1):
        place = f"{where}:instances.{number}"
        if not isinstance(instance, dict):
            fail(place, "an object", f"{kind_of(instance)} {excerpt(instance)}")
        question = _with_input(instruction, _text(place, instance, "input", ""))
        yield place, _conversation("", question, _text(place, instance, "output"))


def _messages(where: str, row: Row) -> Iterator[tuple[str, Conversation]]:
    """{messages: [{role, content}]}, as OpenAI's files have it."""
    yield where, _turns(where, row, "messages", "role", "content")


def _sharegpt(where: str, row: Row) -> Iterator[tuple[str, Conversation]]:
    """{conversations: [{from: human, value: ...}, {from: gpt, value: ...}]}; a field `system` may come with them."""
    turns = _turns(where, row, "conversations", "from", "value")
    system = _text(where, row, "system", "").strip()
    if system:
        turns.insert(0, {"role": "system", "content": system})
    yield where, turns


def _turns(where: str, row: Row, name: str, who: str, what: str) -> Conversation:
    """The turns under `name`, with the role of each under `who` and its text under `what`."""
    turns: Conversation = []
    for number, turn in enumerate(_list(where, row, name), 1):
        place = f"{where}:{name}.{number}"
        if not isinstance(turn, dict):
            fail(place, "an object", f"{kind_of(turn)} {excerpt(turn)}")
        role = _text(place, turn, who)
        if role not in ROLES:
            fail(f"{place}.{who}", f"one of {', '.join(ROLES)}", excerpt(role))
        turns.append({"role": ROLES[role], "content": _text(place, turn, what)})
    roles = [turn["role"] for turn in turns]
    if roles[0] == "system":
        del roles[0]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        fail(f"{where}:{name}", "user and assistant by turns, an answer last", excerpt(" ".join(roles), 80))
    return turns


SHAPES: dict[str, Callable[[str, Row], Iterator[tuple[str, Conversation]]]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "self_instruct": _self_instruct,
    "prompt_completion": _prompt_completion,
}
