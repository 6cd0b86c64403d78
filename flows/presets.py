"""Presets and `--set key=value`, laid over params.yaml.

DVC reads its parameters from params.yaml alone, so this is where they go: `git diff` shows them, and `git checkout
params.yaml` undoes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from flows.params import check
from tasks.lib.stage import PARAMS_FILE, Problem, read_yaml, replaced

WRITTEN = Path(".anneal") / "params.laid"  # the hash of the params.yaml that was written here
VARIABLE = re.compile(r"\$\{(\w+)\}")


def lay_over(presets: Sequence[Path], settings: Sequence[str], keep: bool = False) -> list[str]:
    """Merge presets in their order, then `key=value` settings, into params.yaml; a line per value that changed.

    They are laid over the committed file, so those of a second run replace those of the first. Changes that a person
    made and did not commit are a Problem; with `keep` they stay, and the presets are laid over them.
    """
    if not presets and not settings:
        return []
    from ruamel.yaml import YAML

    yaml = YAML()  # round trip: comments and order stay
    yaml.preserve_quotes = True
    yaml.width = 4096
    document = yaml.load(_text_to_start_from(keep))
    changes = _lay(document, presets, settings)
    text = StringIO()
    yaml.dump(document, text)
    _write_when_valid(text.getvalue())
    return changes


def laid(document: dict[str, Any], presets: Sequence[Path], settings: Sequence[str] = ()) -> dict[str, Any]:
    """The document of a params.yaml, changed in place by presets and `key=value` settings; no file is written."""
    _lay(document, presets, settings)
    return document


def _lay(document: dict[str, Any], presets: Sequence[Path], settings: Sequence[str]) -> list[str]:
    """Merge the presets, then the settings, one by one; a line per value that changed."""
    changes: list[str] = []
    for preset in presets:
        overlay = read_yaml(preset)
        if not isinstance(overlay, dict):
            raise Problem(f"{preset}: expected sections of params.yaml, found {type(overlay).__name__}")
        changes += _merge(document, _with_environment(overlay, preset))
    for setting in settings:
        changes += _merge(document, _as_overlay(setting))
    return changes


def _merge(into: dict[str, Any], overlay: Mapping[str, Any], above: str = "") -> list[str]:
    """Lay mappings over mappings, key by key, and replace every other value; a line per value that changed."""
    changes: list[str] = []
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            changes += _merge(into[key], value, f"{above}{key}.")
        elif key not in into or into[key] != value:
            changes.append(f"{above}{key}: {into.get(key, 'unset')!r} -> {value!r}")
            into[key] = value
    return changes


def _as_overlay(setting: str) -> dict[str, Any]:
    """`a.b=1` as {a: {b: 1}}; the value is read as YAML."""
    from ruamel.yaml import YAML

    key, equals, text = setting.partition("=")
    parts = key.split(".")
    if not equals or "" in parts:
        raise Problem(f"--set {setting}: expected key=value, such as sft.trainer.learning_rate=2e-5")
    value: Any = YAML(typ="safe", pure=True).load(text)
    for part in reversed(parts):
        value = {part: value}
    return value


def _with_environment(value: Any, preset: Path) -> Any:
    """`${NAME}` in the strings of a preset is the environment's; an unset one is a Problem that names it."""
    if isinstance(value, dict):
        return {key: _with_environment(item, preset) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_environment(item, preset) for item in value]
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if name not in os.environ:
            raise Problem(f"{preset}: ${{{name}}} is not set; type `export {name}=...` first")
    return VARIABLE.sub(lambda match: os.environ[match[1]], value)


def _text_to_start_from(keep: bool) -> str:
    """The text that a preset is laid over: the committed params.yaml, or the present one with `keep`."""
    if not PARAMS_FILE.is_file():
        raise Problem(f"{PARAMS_FILE} does not exist; run this in the project's folder")
    present = PARAMS_FILE.read_text(encoding="utf-8")
    committed = subprocess.run(["git", "show", f"HEAD:./{PARAMS_FILE}"], capture_output=True, text=True, check=False)
    is_committed = committed.returncode == 0
    if keep or not is_committed or committed.stdout == present:
        return present
    is_of_a_preset = WRITTEN.is_file() and WRITTEN.read_text(encoding="utf-8") == _hash(present)
    if not is_of_a_preset:
        raise Problem(
            f"{PARAMS_FILE} has changes that are not committed; commit them, or pass --keep to lay the preset over them"
        )
    return committed.stdout


def _write_when_valid(text: str) -> None:
    """Replace params.yaml by a text, or raise the Problem with it and change nothing."""
    draft = PARAMS_FILE.with_name(f".{PARAMS_FILE.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        check(draft)
    except Problem as problem:
        raise Problem(str(problem).replace(draft.name, PARAMS_FILE.name)) from None
    finally:
        draft.unlink(missing_ok=True)
    with replaced(PARAMS_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    WRITTEN.parent.mkdir(exist_ok=True)
    WRITTEN.write_text(_hash(text), encoding="utf-8")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
