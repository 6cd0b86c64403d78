"""Rankings: what an importer is given, what it yields, and how it reads the prompt of a row.

An importer is a function from an `Export`, one file of a tool, to a `Ranking` for each ranking that somebody made and a
`Dropped` for each annotation that is none. Ratings of single answers become rankings, too (ratings.py). An importer
passes ties on as equal ranks and answers as they are: `cleaned` (cleaning.py) applies the rules that hold for every
tool, such as what happens to equal answers. formats.py lists the importers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import ROLES, Row
from tasks.lib.stage import Problem

Messages = list[dict[str, str]]
PROMPTS = ("messages", "prompt", "conversations", "instruction", "question", "input")  # names of the prompt


@dataclass(frozen=True)
class Ranking:
    """One ranking of the answers to a prompt by one annotator, as the export has it."""

    where: str  # file and row
    prompt: Messages
    answers: list[str]
    ranks: list[int]  # 0 best, equal = tie, gaps allowed
    annotator: str
    source: str
    license: str | None = None
    strength: float | None = None  # how clear the preference is, 0 to 1
    order: tuple[str, int] = ("", 0)  # time and number: of two rankings of the same answers the later counts


@dataclass(frozen=True)
class Dropped:
    """An annotation that is no ranking, or not one to train on. What is dropped is reported, with place and reason."""

    where: str
    rule: str  # one of RULES, or a rule that only its importer has
    detail: str


RULES = (  # in the order of the report
    "cancelled",
    "abstained",
    "untouched",
    "annotator_twice",
    "repeated",
    "equal_answers",
    "empty_answer",
    "too_few_answers",
    "prompts_differ",
    "scores_differ",
    "order_flip",
    "no_verdict",
    "unranked_answer",
    "no_parent",
    "unannotated",
    "no_answer",
    "cycle",
)


@dataclass(frozen=True)
class Export:
    """One file of preferences, as an importer is given it."""

    path: Path
    rows: Iterator[tuple[str, Row]]  # the place of a row (file:number), and the row
    buckets: Sequence[str] = ()  # names of Label Studio's buckets, best first; empty takes their order in the file
    untouched_seconds: float = 5.0  # the order that Label Studio showed says nothing if it was submitted sooner

    def annotator_of(self, row: Row) -> str:
        """Who annotated a row; its file if the row does not say."""
        return str(row.get("annotator") or self.path.stem)

    def source_of(self, row: Row) -> str:
        """Where a row comes from; its file if the row does not say."""
        return str(row.get("source") or self.path.stem)


def collapse_whitespace(text: str) -> str:
    """The text with every run of white space as one blank: answers that agree in this are equal. Case counts."""
    return " ".join(text.split())


def field_of(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of several names that a row has as a field; None if it has none of them."""
    for name in names:
        if name in row:
            return name
    return None


def is_list_of_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def prompt_of(where: str, row: Mapping[str, Any]) -> Messages:
    """The prompt of a row, text or messages, as messages, after its `system` text if it has one.

    Problem naming the field when there is no prompt.
    """
    name = next((name for name in PROMPTS if row.get(name)), "prompt")
    prompt = row.get(name)
    if name == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{prompt}\n\n{row['input']}"
    if isinstance(prompt, str) and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise Problem(f"{where}:{name}: expected text or messages, found {str(prompt)[:60]!r}; name the field `prompt`")
    messages = messages_of(f"{where}:{name}", prompt)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def messages_of(where: str, turns: Sequence[Any]) -> Messages:
    """{role, content} messages of turns in that form or as {from, value}. Problem for anything else."""
    messages = []
    for turn in turns:
        fields = turn if isinstance(turn, dict) else {}
        role = ROLES.get(str(fields.get("role", fields.get("from"))))
        content = fields.get("content", fields.get("value"))
        if role is None or not isinstance(content, str):
            raise Problem(f"{where}: expected messages of role and content, found {str(turn)[:60]!r}")
        messages.append({"role": role, "content": content})
    return messages


def is_heldout_prompt(prompt: Messages, share: float) -> bool:
    """True for `share` of all prompts, by hash: equal prompts are in one split, and no prompt ever moves."""
    return int(prompt_key(prompt)[:8], 16) / 2**32 < share
