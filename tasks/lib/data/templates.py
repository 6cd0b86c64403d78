"""Prompt templates: our own YAML files, and promptsource's templates.yaml (T0's), rendered in a sandbox.

promptsource keeps prompt and answer in one text split at `|||`. The split is made in the template's syntax
tree, so a `|||` inside the data stays data; the same holds for `answer_choices`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from jinja2 import TemplateError, meta, nodes
from pydantic import BaseModel, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.sandbox import MAX_TEXT, Dice, Renderer, Sandbox
from tasks.lib.data.substitution import Substitution, split, substitution
from tasks.lib.data.time_limit import time_limit
from tasks.lib.stage import Problem, read_yaml, validated

BAR = "|||"
_MARK = "\0|\0"  # stands for a bar of the template; the reader keeps NUL out of the data

_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


class Turn(BaseModel, extra="forbid"):
    """A turn of the conversation before the prompt."""

    role: Literal["user", "assistant"]
    content: str


class TemplateFile(BaseModel, extra="forbid"):
    """One of our template files."""

    prompt: str
    answer: str
    label: str | None = None
    choices: list[str] | str | None = None
    system: str | None = None
    turns: list[Turn] = []
    exemplars: int = Field(0, ge=0, le=32)  # few-shot: so many solved rows of the same split come first
    heldout: bool = False


@dataclass(frozen=True)
class Template:
    """A compiled template. `parts` render to texts that hold _MARK where the template splits."""

    name: str  # <folder>/<name>: what reports and rows call it
    where: str  # the file, and in promptsource's the name, for messages
    file: Path
    prompt: Renderer | None  # None: `answer` renders both, split at the bar (promptsource)
    answer: Renderer
    label: Renderer | None
    choices: list[str] | Renderer | None
    system: Renderer | None
    heldout: bool
    fields: frozenset[str]  # the names it uses
    turns: tuple[tuple[str, Renderer], ...] = ()  # (role, text) before the prompt
    exemplars: int = 0

    @cached_property
    def texts(self) -> list[Renderer]:
        """Prompt, answer, label, system and turns, those that there are."""
        given = [self.prompt, self.answer, self.label, self.system, *(text for _, text in self.turns)]
        return [text for text in given if text]

    @cached_property
    def substitution(self) -> Substitution | None:
        """Prompt, answer, label, system and turns at once, where all of them only substitute fields."""
        listed = [text.pieces for text in self.texts if text.pieces is not None]
        if isinstance(self.choices, Renderer) or len(listed) < len(self.texts):
            return None
        if self.prompt is None:
            listed = split(listed[0], _MARK)
        constants = {} if self.choices is None else {"answer_choices": self.choices}
        return substitution(listed, constants, MAX_TEXT) if len(listed) > 1 else None


class Rendered(NamedTuple):
    """What one template makes of one row."""

    prompt: str
    answer: str
    label: str
    choices: list[str] | None
    system: str | None
    turns: tuple[tuple[str, str], ...] = ()


@cache
def _sandbox() -> Sandbox:
    return Sandbox()


def _compiled(where: str, source: str, names: set[str], split: bool = False) -> Renderer:
    """Compile one Jinja text, adding the fields it uses to `names`."""
    try:
        tree = _sandbox().parse(source)
        for node in tree.find_all((nodes.TemplateData, nodes.Const)):
            text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
            if isinstance(text, str) and "\0" in text:
                raise Problem(f"{where}: the template holds a NUL character; remove it")
            if split and isinstance(text, str) and BAR in text:
                setattr(
                    node,
                    "data" if isinstance(node, nodes.TemplateData) else "value",
                    text.replace(BAR, _MARK),
                )
        names |= meta.find_undeclared_variables(tree) - _sandbox().globals.keys() - {"answer_choices"}
        return Renderer(_sandbox(), tree)
    except TemplateError as error:
        found = excerpt((error.message or "an error").split("\n")[0], 100)[1:-1]
        raise Problem(f"{where}: expected a Jinja template, found: {found}") from None


def read_templates(folder: Path, prefix: str = "") -> list[Template]:
    """All templates of a folder, ours (one per *.yaml) or promptsource's (templates.yaml), as `<prefix>/<name>`."""
    prefix = prefix or folder.name
    if not folder.is_dir():
        raise Problem(f"{folder}: expected a folder of templates, found nothing; see templates/ for examples")
    files = sorted(folder.glob("*.yaml"))
    templates = [
        t for f in files for t in (_promptsource(f, prefix) if f.name == "templates.yaml" else [_ours(f, prefix)])
    ]
    if not templates:
        raise Problem(f"{folder}: expected templates (*.yaml), found none")
    names = [t.name for t in templates]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise Problem(f"{folder}: two templates are called {repeated}; rename one")
    return sorted(templates, key=lambda t: t.name)


def _ours(path: Path, prefix: str) -> Template:
    file = validated("", TemplateFile, read_yaml(path), path)
    used: set[str] = set()

    def part(key: str, source: str | None, split: bool = False) -> Renderer | None:
        return None if source is None else _compiled(f"{path}: {key}", source, used, split)

    answer = part("answer", file.answer)
    assert answer is not None
    choices = part("choices", file.choices, True) if isinstance(file.choices, str) else file.choices
    return Template(
        name=f"{prefix}/{path.stem}",
        where=str(path),
        file=path,
        prompt=part("prompt", file.prompt),
        answer=answer,
        label=part("label", file.label),
        choices=choices,
        system=part("system", file.system),
        heldout=file.heldout,
        turns=tuple(
            (turn.role, _compiled(f"{path}: turns.{number}", turn.content, used))
            for number, turn in enumerate(file.turns)
        ),
        exemplars=file.exemplars,
        fields=frozenset(used),
    )


def _promptsource(path: Path, prefix: str) -> list[Template]:
    templates = []
    for entry in _read_promptsource(path):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("name", "jinja")):
            raise Problem(f"{path}: expected templates with name and jinja, found {excerpt(entry)}")
        name, choices = entry["name"].strip(), entry.get("answer_choices")
        where, used = f"{path}: {name}", set[str]()
        answer = _compiled(where, entry["jinja"], used, split=True)
        listed: list[str] | Renderer | None = None
        if choices:
            listed = _compiled(f"{where}: answer_choices", choices, used, split=True)
            if listed.pieces is not None and all(isinstance(piece, str) for piece in listed.pieces):
                text = "".join(map(str, listed.pieces))  # the same for every row
                listed = [part.strip() for part in text.split(_MARK)]
        templates.append(
            Template(
                name=f"{prefix}/{name}",
                where=where,
                file=path,
                prompt=None,
                answer=answer,
                label=None,
                choices=listed,
                system=None,
                heldout=False,
                fields=frozenset(used),
            )
        )
    return templates


def _read_promptsource(path: Path) -> Iterable[Any]:
    """Read templates.yaml safely: its two tags become plain mappings, any other tag is refused."""
    yaml = YAML(typ="safe", pure=True)
    for tag in ("!Template", "!TemplateMetadata"):
        yaml.constructor.add_constructor(tag, _mapping)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: expected UTF-8 text, found {error.reason} at byte {error.start}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Problem(f"{path}:{line}: {' '.join((error.problem or 'not valid YAML').split())}") from None
    templates = document.get("templates") if isinstance(document, dict) else None
    if not isinstance(templates, dict):
        raise Problem(f"{path}: expected promptsource's `templates:`, found {excerpt(document)}")
    return templates.values()


def _mapping(constructor: Any, node: MappingNode) -> dict[str, Any]:
    return dict(constructor.construct_mapping(node, deep=True))


def check_fields(template: Template, fields: Iterable[str], source: str) -> None:
    """A field that the template names and the source lacks is a Problem: plain Jinja would render nothing."""
    if missing := sorted(template.fields - set(fields)):
        raise Problem(
            f"{template.where}: the template names the field {missing[0]}, but the rows of {source} have"
            f" {', '.join(fields)}"
        )


def render(template: Template, fields: dict[str, Any], where: str, seed: str) -> Rendered | str:
    """What `template` makes of a row's `fields`, or why it makes nothing: 'empty prompt', 'empty answer'.

    `seed` drives the filter `choice`; `where` names the row in a Problem. Parts are stripped, as promptsource
    does.
    """
    quick = template.substitution
    made = quick(fields) if quick else None
    if made is None:
        choices, texts = _texts(template, fields, where, seed)
    else:
        choices, texts = cast("list[str] | None", template.choices), made
    return _checked(template, choices, texts, where)


def _texts(template: Template, fields: dict[str, Any], where: str, seed: str) -> tuple[list[str] | None, Sequence[str]]:
    """The choices, and prompt, answer, label, system and turns as the sandbox renders them."""
    choices = template.choices
    try:
        with time_limit():
            context = _sandbox().context(fields, Dice(seed))
            if isinstance(choices, Renderer):
                choices = [part.strip() for part in choices(context).split(_MARK)]
            if choices is not None:
                context.parent["answer_choices"] = choices
            texts = [text(context) for text in template.texts]
    except _TEMPLATE_ERRORS as error:
        raise Problem(f"{where}: {template.where}: {excerpt(str(error), 160)[1:-1]}") from None
    if template.prompt is None:
        texts = texts[0].split(_MARK)
        texts = texts if len(texts) > 1 else [*texts, ""]
    return choices, texts


def _checked(template: Template, choices: list[str] | None, texts: Sequence[str], where: str) -> Rendered | str:
    if template.prompt is None and len(texts) > 2:
        raise Problem(f"{where}: {template.where}: expected one ||| per render, found {len(texts) - 1}")
    prompt, answer = texts[0].strip(), texts[1].strip()
    if len(texts) == 2 and prompt and answer and (choices is None or answer in choices):  # most of them
        return Rendered(prompt, answer, answer, choices, None)
    label, place, system = answer, 2, None
    turns: tuple[tuple[str, str], ...] = ()
    if template.label:
        label, place = texts[place].strip(), place + 1
    if template.system:
        system, place = texts[place].strip(), place + 1
    if not prompt or not answer or not label:
        return "empty answer" if prompt else "empty prompt"
    if template.turns:
        shown = [text.strip() for text in texts[place:]]
        if not all(shown):
            return "empty turn"
        turns = tuple((role, text) for (role, _), text in zip(template.turns, shown, strict=True))
    if choices is not None and label not in choices:
        listed = excerpt(", ".join(choices), 80)
        raise Problem(f"{where}: {template.where}: expected an answer among {listed}, found {excerpt(label)}")
    return Rendered(prompt, answer, label, choices, system, turns)
