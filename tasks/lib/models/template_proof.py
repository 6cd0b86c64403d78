"""The proof that the pipeline's rows are what the chat template writes."""

from __future__ import annotations

from typing import Any

from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.models.chat_template import ANSWER, MARKER, QUESTION, around_answer
from tasks.lib.models.stored_template import SYSTEM
from tasks.lib.stage import Problem

Conversation = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]  # what it is, messages, tools

THOUGHT = {"role": "assistant", "content": "One", "reasoning_content": "A thought"}
CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
CALLED: list[dict[str, Any]] = [
    QUESTION,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "One", "name": "look", "tool_call_id": "call00001"},
]
PARAMETERS = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": PARAMETERS}}
EXCERPT = 40  # characters shown on either side of the first difference


def refuse_unlike_rows(tokenizer: Any, name: str) -> None:
    """Problem unless prompt and answer begin what the chat template writes of the finished conversation.

    They are compared as texts, and as the texts of their ids (without white space: sentencepiece adds a blank to an
    answer). Asked for are one question and several turns, with and without a system message, and, where the template
    reads them, thoughts in earlier turns (`reasoning_content`) and tools. What the template refuses to write can be
    no row either. `name` is the model's, for the message.
    """
    for what, messages, tools in _conversations(str(tokenizer.chat_template)):
        settings = {"tools": tools} if tools else {}
        try:
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **settings)
            finished = tokenizer.apply_chat_template([*messages, ANSWER], tokenize=False, **settings)
        except Exception:  # templates raise their own errors
            continue
        _compare(name, what, prompt, finished)
        before, after = around_answer(tokenizer, tokenizer.chat_template)
        _compare(name, what, prompt + before + MARKER + after, finished)
        if not tools:
            ids = prompt_ids(tokenizer, messages) + answer_ids(tokenizer, MARKER)[:-1]
            written = tokenizer.encode(finished, add_special_tokens=False)
            _compare(name, f"the ids of {what}", *["".join(tokenizer.decode(each).split()) for each in (ids, written)])


def _conversations(template: str) -> list[Conversation]:
    """Conversations up to where the assistant answers."""
    turns: list[dict[str, Any]] = [QUESTION, ANSWER, QUESTION]
    found: list[Conversation] = [
        ("a question", [QUESTION], []),
        ("a system message and a question", [SYSTEM, QUESTION], []),
        ("several turns", turns, []),
        ("a system message and several turns", [SYSTEM, *turns], []),
    ]
    if "reasoning_content" in template:
        found.append(("several turns with a thought", [QUESTION, THOUGHT, QUESTION], []))
    if "tools" in template:
        found.append(("a question with a tool", [QUESTION], [TOOL]))
        found.append(("what a tool answered", CALLED, [TOOL]))
    return found


def _compare(name: str, what: str, row: str, finished: str) -> None:
    """Problem unless `row` begins `finished`; it shows both where they begin to differ."""
    if finished.startswith(row):
        return
    first = 0
    while row[first : first + 1] == finished[first : first + 1]:
        first += 1
    shown = slice(max(0, first - EXCERPT), first + EXCERPT)
    raise Problem(
        f"{name}: the chat template asks for an answer to {what} with ...{row[shown]!r}, but writes "
        f"...{finished[shown]!r} in the finished conversation; give the folder a chat_template.jinja "
        "of which the first begins the second"
    )
