"""Files of prompt templates: our own YAML, one template a file, and promptsource's templates.yaml (T0's).

promptsource keeps prompt and answer in one text split at `|||`. The split is made in the template's syntax
tree, so a `|||` inside the data stays data; the same holds for `answer_choices`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError, nodes
from pydantic import BaseModel, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.sandbox import Renderer
from tasks.lib.data.templates import MARK, Template, sandbox
from tasks.lib.stage import Problem, read_yaml, validated

BAR = "|||"


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
    exemplars: int = Field(0, ge=0, le=32)  # few-shot: how many solved rows of the same split come first
    heldout: bool = False


def read_templates(folder: Path, prefix: str = "") -> list[Template]:
    """All templates of a folder, ours (one per *.yaml) or promptsource's (templates.yaml), as `<prefix>/<name>`."""
    prefix = prefix or folder.name
    if not folder.is_dir():
        raise Problem(f"{folder}: expected a folder of templates, found nothing; see templates/ for examples")
    templates: dict[str, Template] = {}
    for path in sorted(folder.glob("*.yaml")):
        of_file = [_ours(path, prefix)] if path.name != "templates.yaml" else _promptsource(path, prefix)
        for template in of_file:
            if template.name in templates:
                raise Problem(f"{folder}: two templates are called {template.name}; rename one")
            templates[template.name] = template
    if not templates:
        raise Problem(f"{folder}: expected templates (*.yaml), found none")
    return [templates[name] for name in sorted(templates)]


def _compiled(where: str, source: str, is_split: bool = False) -> Renderer:
    """Compile one Jinja text; with `is_split` the bars of the template, not those of the data, split it."""
    try:
        tree = sandbox().parse(source)
        for node in tree.find_all((nodes.TemplateData, nodes.Const)):
            key = "data" if isinstance(node, nodes.TemplateData) else "value"
            text = getattr(node, key)
            if isinstance(text, str) and "\0" in text:
                raise Problem(f"{where}: the template holds a NUL character; remove it")
            if isinstance(text, str) and is_split:
                setattr(node, key, text.replace(BAR, MARK))
        return Renderer(sandbox(), tree)
    except TemplateError as error:
        found = excerpt((error.message or "an error").split("\n")[0], 100)[1:-1]
        raise Problem(f"{where}: expected a Jinja template, found: {found}") from None


def _ours(path: Path, prefix: str) -> Template:
    file = validated("", TemplateFile, read_yaml(path), path)
    answer = _compiled(f"{path}: answer", file.answer)
    choices: list[str] | Renderer | None = None
    if isinstance(file.choices, str):
        choices = _compiled(f"{path}: choices", file.choices, is_split=True)
    elif file.choices is not None:
        choices = file.choices
    prompt = _compiled(f"{path}: prompt", file.prompt)
    label = system = None
    if file.label is not None:
        label = _compiled(f"{path}: label", file.label)
    if file.system is not None:
        system = _compiled(f"{path}: system", file.system)
    turns = []
    for number, turn in enumerate(file.turns):
        turns.append((turn.role, _compiled(f"{path}: turns.{number}", turn.content)))
    return Template(
        name=f"{prefix}/{path.stem}",
        where=str(path),
        file=path,
        prompt=prompt,
        answer=answer,
        label=label,
        choices=choices,
        system=system,
        heldout=file.heldout,
        turns=tuple(turns),
        exemplars=file.exemplars,
    )


def _promptsource(path: Path, prefix: str) -> list[Template]:
    templates = []
    for entry in _read_promptsource(path):
        keys = entry if isinstance(entry, dict) else {}
        if not isinstance(keys.get("name"), str) or not isinstance(keys.get("jinja"), str):
            raise Problem(f"{path}: expected templates with name and jinja, found {excerpt(entry)}")
        name = keys["name"].strip()
        where = f"{path}: {name}"
        templates.append(
            Template(
                name=f"{prefix}/{name}",
                where=where,
                file=path,
                prompt=None,
                answer=_compiled(where, keys["jinja"], is_split=True),
                label=None,
                choices=_promptsource_choices(where, keys.get("answer_choices")),
                system=None,
                heldout=False,
            )
        )
    return templates


def _promptsource_choices(where: str, source: str | None) -> list[str] | Renderer | None:
    """The choices: a list where they are the same for every row."""
    if not source:
        return None
    choices = _compiled(f"{where}: answer_choices", source, is_split=True)
    if choices.pieces is None:
        return choices
    constant = ""
    for piece in choices.pieces:
        if not isinstance(piece, str):
            return choices
        constant += piece
    return [choice.strip() for choice in constant.split(MARK)]


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
