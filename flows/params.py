"""params.yaml as a whole: all sections valid before anything starts; presets and --set laid over it."""

from __future__ import annotations
import __future__

import ast
import contextlib
import difflib
import hashlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from flows.fields import fields
from tasks.lib.stage import PARAMS_FILE, SHARED_KEYS, Problem, read_yaml, replaced, validated

DVC_FILE = Path("dvc.yaml")
LAID = Path(".anneal") / "params.laid"  # fingerprint of the params.yaml that a preset made
MODULE = re.compile(r"-m (tasks\.(\w+))")
VARIABLE = re.compile(r"\$\{(\w+)\}")
LIGHT = (*sys.stdlib_module_names, "pydantic")  # what a model of parameters is made of


def check(path: Path = PARAMS_FILE) -> None:
    """Validate every section against its stage's `Params`, or raise one Problem with a line per mistake."""
    if path.is_file() and (found := list(problems(path))):
        raise Problem("\n".join(found))


def problems(path: Path = PARAMS_FILE) -> Iterator[str]:
    """Every mistake in params.yaml, in one line each, for the stages that dvc.yaml runs."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        yield f"{path}: expected sections, found {type(document).__name__}"
        return
    pipeline = DVC_FILE.read_text(encoding="utf-8")
    stages = dict.fromkeys(match[2] for match in MODULE.finditer(pipeline))
    known = [
        *stages,
        *SHARED_KEYS,
        *(n for n in document if re.search(rf"\b{re.escape(str(n))}\b", pipeline)),
    ]
    for name in document:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known sections: {', '.join(dict.fromkeys(known))}"
            yield f"{path}: the section {name} belongs to no stage; {hint}"
    for key in SHARED_KEYS if stages else ():
        if not isinstance(document.get(key), int):
            yield f"{path}: {key}: expected a whole number, found {document.get(key)!r}"
    loaded: dict[str, ModuleType] = {}
    for name in stages:
        try:
            if name not in document:
                raise Problem(f"{path}: the section {name} is missing")
            params = _validate(name, document, path, loaded)
            yield from _misspelt(name, params, path)
        except Problem as problem:
            yield str(problem)
        except (ImportError, AttributeError) as error:
            yield f"tasks/{name}.py: {error}"


def _validate(name: str, document: Mapping[str, Any], path: Path, loaded: dict[str, ModuleType]) -> BaseModel:
    """Quickly, without torch; a stage whose `Params` needs more than pydantic is imported after all."""
    try:
        return validated(name, _without_heavy_imports(f"tasks.{name}", loaded).Params, document[name], path)
    except (AttributeError, NameError, PydanticUserError):
        return validated(name, importlib.import_module(f"tasks.{name}").Params, document[name], path)


def _misspelt(stage: str, params: BaseModel, path: Path) -> Iterator[str]:
    """Keys of a library's settings that none of the classes has which the stage names in its Params."""
    for section, field in type(params).model_fields.items():
        places = [place for place in field.metadata if isinstance(place, str)]
        known = sorted(set().union(*map(fields, places)))
        for key in (getattr(params, section) or ()) if known else ():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
                hint = f"; did you mean {near[0]}?" if near else ""
                classes = " or ".join(place.rpartition(".")[2] for place in places)
                yield f"{path}: {stage}.{section}.{key} is not a key of {classes}{hint}"


def _without_heavy_imports(name: str, loaded: dict[str, ModuleType]) -> ModuleType:
    """A module of tasks/ as far as it goes without third-party packages: enough for the models of parameters.

    Importing all stages costs 15 seconds of CPU time, which a misspelt key should not. Statements run one by
    one; those that need what was left out are left out too.
    """
    if name == "tasks.lib.stage":
        return importlib.import_module(name)  # it is light, and its Problem must be the one we catch
    if name in loaded:
        return loaded[name]
    loaded[name] = module = ModuleType(f"{name} (its parameters)")
    sys.modules[module.__name__] = module  # where pydantic looks up the names in annotations
    file = Path(*name.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tasks."):
            source = vars(_without_heavy_imports(str(node.module), loaded))
            vars(module).update({a.asname or a.name: source[a.name] for a in node.names if a.name in source})
        elif _is_light(node):
            code = compile(ast.Module([node], []), str(file), "exec", __future__.annotations.compiler_flag)
            with contextlib.suppress(Exception):
                exec(code, vars(module))
    return module


def _is_light(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in LIGHT for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in LIGHT
    return isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Assign, ast.AnnAssign))


def lay_over(preset: Path | None, settings: Sequence[str], keep: bool = False) -> list[str]:
    """Merge a preset and `key=value` settings into params.yaml; return a line per value that changed.

    DVC sees nothing but params.yaml, so this is where they go; `git diff` shows them and `git checkout
    params.yaml` undoes them. They are laid over the committed file: a second preset replaces the first.
    Changes that a person made and did not commit are a Problem, unless `keep` lays over these.
    """
    if preset is None and not settings:
        return []
    from ruamel.yaml import YAML

    yaml = YAML()  # round trip: comments and order stay
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(_start(keep))
    changed: list[str] = []
    if preset is not None:
        overlay = read_yaml(preset)
        if not isinstance(overlay, dict):
            raise Problem(f"{preset}: expected sections of params.yaml, found {type(overlay).__name__}")
        _merge(document, _expanded(overlay, preset), "", changed)
    _set(document, settings, changed)
    written = StringIO()
    yaml.dump(document, written)
    _replace_when_valid(written.getvalue())
    return changed


def laid(document: Any, preset: Path, settings: Sequence[str] = ()) -> Any:
    """A document with a preset and `key=value` settings laid over it; nothing is written."""
    overlay = read_yaml(preset)
    if not isinstance(overlay, dict):
        raise Problem(f"{preset}: expected sections of params.yaml, found {type(overlay).__name__}")
    _merge(document, _expanded(overlay, preset), "", [])
    _set(document, settings, [])
    return document


def _set(document: Any, settings: Sequence[str], changed: list[str]) -> None:
    from ruamel.yaml import YAML

    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not all(key.split(".")):
            raise Problem(f"--set {setting}: expected key=value, such as sft.trainer.learning_rate=2e-5")
        value: Any = YAML(typ="safe", pure=True).load(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(document, value, "", changed)


def _replace_when_valid(text: str) -> None:
    draft = PARAMS_FILE.with_name(f".{PARAMS_FILE.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            check(draft)
        except Problem as problem:
            raise Problem(str(problem).replace(draft.name, PARAMS_FILE.name)) from None
        with replaced(PARAMS_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    finally:
        draft.unlink(missing_ok=True)
    LAID.parent.mkdir(exist_ok=True)
    LAID.write_text(hashlib.sha256(text.encode()).hexdigest(), encoding="utf-8")


def _start(keep: bool) -> str:
    """The text that a preset is laid over: the committed params.yaml, or the present one with `keep`."""
    if not PARAMS_FILE.is_file():
        raise Problem(f"{PARAMS_FILE} does not exist; run this in the project's folder")
    now = PARAMS_FILE.read_text(encoding="utf-8")
    shown = subprocess.run(["git", "show", f"HEAD:./{PARAMS_FILE}"], capture_output=True, text=True, check=False)
    if keep or shown.returncode or shown.stdout == now:
        return now
    ours = LAID.is_file() and LAID.read_text(encoding="utf-8") == hashlib.sha256(now.encode()).hexdigest()
    if not ours:
        raise Problem(
            f"{PARAMS_FILE} has changes that are not committed; commit them, or pass --keep to lay the preset over them"
        )
    return shown.stdout


def _merge(into: Any, overlay: Mapping[str, Any], where: str, changed: list[str]) -> None:
    for key, value in overlay.items():
        path = f"{where}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, f"{path}.", changed)
        elif key not in into or into[key] != value:
            changed.append(f"{path}: {into.get(key, 'unset')!r} -> {value!r}")
            into[key] = value


def _expanded(value: Any, preset: Path) -> Any:
    """`${NAME}` in the strings of a preset is the environment's; an unset one is a Problem that names it."""
    if isinstance(value, dict):
        return {key: _expanded(item, preset) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, preset) for item in value]
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if name not in os.environ:
            raise Problem(f"{preset}: ${{{name}}} is not set; type `export {name}=...` first")
    return VARIABLE.sub(lambda match: os.environ[match[1]], value)
