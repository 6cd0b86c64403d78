"""Prompt templates: what they are, and what one makes of a row, in a sandbox. template_files.py reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from jinja2 import TemplateError

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.sandbox import MAX_TEXT, Dice, Renderer, Sandbox
from tasks.lib.data.substitution import Substitution, split, substitution
from tasks.lib.data.time_limit import time_limit
from tasks.lib.stage import Problem

MARK = "\0|\0"  # where a template splits a text; the reader keeps NUL out of the data

_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


@cache
def sandbox() -> Sandbox:
    """The sandbox of all templates."""
    return Sandbox()


@dataclass(frozen=True)
class Template:
    """A compiled template. Its texts hold MARK where the template splits them."""

    name: str  # <folder>/<name>: what reports and rows call it
    where: str  # the file, and in promptsource's the name, for messages
    file: Path
    prompt: Renderer | None  # None: `answer` renders both, split at the bar (promptsource)
    answer: Renderer
    label: Renderer | None
    choices: list[str] | Renderer | None
    system: Renderer | None
    heldout: bool
    turns: tuple[tuple[str, Renderer], ...] = ()  # (role, text) before the prompt
    exemplars: int = 0

    @cached_property
    def texts(self) -> list[Renderer]:
        """Prompt, answer, label, system and turns, those that there are."""
        texts = [text for text in (self.prompt, self.answer, self.label, self.system) if text]
        for _, text in self.turns:
            texts.append(text)
        return texts

    @cached_property
    def fields(self) -> frozenset[str]:
        """The names of fields that it uses."""
        names: set[str] = set()
        for text in self.texts:
            names |= text.names
        if isinstance(self.choices, Renderer):
            names |= self.choices.names
        return frozenset(names - {"answer_choices"})

    @cached_property
    def substitution(self) -> Substitution | None:
        """Prompt, answer, label, system and turns at once, where all of them only substitute fields."""
        pieces = [text.pieces for text in self.texts if text.pieces is not None]  # of each text
        if isinstance(self.choices, Renderer) or len(pieces) < len(self.texts):
            return None
        if self.prompt is None:
            pieces = split(pieces[0], MARK)
            if len(pieces) == 1:  # no bar, no answer
                return None
        constants = {}
        if self.choices is not None:
            constants["answer_choices"] = self.choices
        return substitution(pieces, constants, MAX_TEXT)


class Rendered(NamedTuple):
    """What one template makes of one row."""

    prompt: str
    answer: str
    label: str
    choices: list[str] | None
    system: str | None
    turns: tuple[tuple[str, str], ...] = ()


def check_fields(template: Template, fields: Iterable[str], source: str) -> None:
    """A field that the template names and the source lacks is a Problem: plain Jinja would render nothing."""
    missing = sorted(template.fields - set(fields))
    if missing:
        raise Problem(
            f"{template.where}: the template names the field {missing[0]}, but the rows of {source} have"
            f" {', '.join(fields)}"
        )


def render(template: Template, fields: dict[str, Any], where: str, seed: str) -> Rendered | str:
    """What `template` makes of a row's `fields`, or why it makes nothing: 'empty prompt', 'empty answer'.

    `seed` drives the filter `choice`; `where` names the row in a Problem. Texts are stripped, as promptsource does.
    This and what it calls runs for every row and template, which is why it is dense.
    """
    quick = template.substitution
    substituted = quick(fields) if quick else None
    if substituted is not None:
        return _checked(template, cast("list[str] | None", template.choices), substituted, where)
    choices, texts = _texts(template, fields, where, seed)
    return _checked(template, choices, texts, where)


def _texts(template: Template, fields: dict[str, Any], where: str, seed: str) -> tuple[list[str] | None, Sequence[str]]:
    """The choices, and prompt, answer, label, system and turns as the sandbox renders them."""
    choices = template.choices
    try:
        with time_limit():
            context = sandbox().context(fields, Dice(seed))
            if isinstance(choices, Renderer):
                choices = [choice.strip() for choice in choices(context).split(MARK)]
            if choices is not None:
                context.parent["answer_choices"] = choices
            texts = [text(context) for text in template.texts]
    except _TEMPLATE_ERRORS as error:
        raise Problem(f"{where}: {template.where}: {excerpt(str(error), 160)[1:-1]}") from None
    if template.prompt is None:
        texts = texts[0].split(MARK)
        if len(texts) == 1:
            texts.append("")
    return choices, texts


def _checked(template: Template, choices: list[str] | None, texts: Sequence[str], where: str) -> Rendered | str:
    """The texts by their names; or why the row is left out."""
    if template.prompt is None and len(texts) > 2:
        raise Problem(f"{where}: {template.where}: expected one ||| in each rendered text, found {len(texts) - 1}")
    prompt, answer = texts[0].strip(), texts[1].strip()
    if len(texts) == 2 and prompt and answer and (choices is None or answer in choices):  # most of them
        return Rendered(prompt, answer, answer, choices, None)
    rest = [text.strip() for text in texts[2:]]  # in the order of Template.texts
    label, system = answer, None
    if template.label:
        label = rest.pop(0)
    if template.system:
        system = rest.pop(0)
    if not prompt:
        return "empty prompt"
    if not answer or not label:
        return "empty answer"
    turns = []
    for (role, _), text in zip(template.turns, rest, strict=True):
        if not text:
            return "empty turn"
        turns.append((role, text))
    if choices is not None and label not in choices:
        listed = excerpt(", ".join(choices), 80)
        raise Problem(f"{where}: {template.where}: expected an answer among {listed}, found {excerpt(label)}")
    return Rendered(prompt, answer, label, choices, system, tuple(turns))
