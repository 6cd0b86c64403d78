"""Prompt templates: our own YAML files, and promptsource's templates.yaml (T0's), rendered in a sandbox.

promptsource keeps prompt and answer in one text split at `|||`. The split is made in the template's syntax
tree, so a `|||` inside the data stays data; the same holds for `answer_choices`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes
from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.sandbox import Dice, Renderer, Sandbox, renderer, time_limit
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


class TemplateFile(BaseModel, extra="forbid"):
    """One of our template files."""

    prompt: str
    answer: str
    label: str | None = None
    choices: list[str] | str | None = None
    system: str | None = None
    heldout: bool = False


@dataclass(frozen=True)
class Template:
    """A compiled template. `parts` render to texts that hold _MARK where the template splits."""

    name: str  # <folder>/<name>: what reports and rows call it
    where: str  # the file, for messages
    prompt: Renderer | None  # None: `answer` renders both, split at the bar (promptsource)
    answer: Renderer
    label: Renderer | None
    choices: list[str] | Renderer | None
    system: Renderer | None
    heldout: bool
    fields: frozenset[str]  # the names it uses


@dataclass(frozen=True)
class Rendered:
    """What one template makes of one row."""

    prompt: str
    answer: str
    label: str
    choices: list[str] | None
    system: str | None


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
        return renderer(_sandbox(), tree)
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
        t
        for f in files
        for t in (_promptsource(f, prefix) if f.name == "templates.yaml" else [_ours(f, prefix)])
    ]
    if not templates:
        raise Problem(f"{folder}: expected templates (*.yaml), found none")
    names = [t.name for t in templates]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise Problem(f"{folder}: two templates are called {repeated}; rename one")
    return sorted(templates, key=lambda t: t.name)


def _ours(path: Path, prefix: str) -> Template:
    file = validated("template", TemplateFile, read_yaml(path), path)
    used: set[str] = set()

    def part(key: str, source: str | None, split: bool = False) -> Renderer | None:
        return None if source is None else _compiled(f"{path}: {key}", source, used, split)

    answer = part("answer", file.answer)
    assert answer is not None
    choices = part("choices", file.choices, True) if isinstance(file.choices, str) else file.choices
    return Template(
        name=f"{prefix}/{path.stem}",
        where=str(path),
        prompt=part("prompt", file.prompt),
        answer=answer,
        label=part("label", file.label),
        choices=choices,
        system=part("system", file.system),
        heldout=file.heldout,
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
        listed = _compiled(f"{where}: answer_choices", choices, used, split=True) if choices else None
        templates.append(
            Template(
                name=f"{prefix}/{name}",
                where=where,
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
    try:
        with time_limit():
            return _render(template, fields, where, Dice(seed))
    except _TEMPLATE_ERRORS as error:
        raise Problem(f"{where}: {template.where}: {excerpt(str(error), 160)[1:-1]}") from None


def _render(template: Template, fields: dict[str, Any], where: str, dice: Dice) -> Rendered | str:
    choices = template.choices
    if callable(choices):
        choices = [part.strip() for part in choices(fields, dice).split(_MARK)]
    if choices is not None:
        fields = {**fields, "answer_choices": choices}
    answer = template.answer(fields, dice)
    if template.prompt is None:
        parts = answer.split(_MARK)
        if len(parts) > 2:
            raise Problem(f"{where}: {template.where}: expected one ||| per render, found {len(parts) - 1}")
        prompt, answer = parts if len(parts) == 2 else (parts[0], "")
    else:
        prompt = template.prompt(fields, dice)
    prompt, answer = prompt.strip(), answer.strip()
    label = template.label(fields, dice).strip() if template.label else answer
    system = template.system(fields, dice).strip() if template.system else None
    if not prompt or not answer or not label:
        return "empty answer" if prompt else "empty prompt"
    if choices is not None and label not in choices:
        listed = excerpt(", ".join(choices), 80)
        raise Problem(f"{where}: {template.where}: expected an answer among {listed}, found {excerpt(label)}")
    return Rendered(prompt, answer, label, choices, system)
