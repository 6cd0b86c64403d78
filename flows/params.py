"""params.yaml as a whole: all sections valid before anything starts; presets and --set laid over it.

Run  python -m flows.params [FILE]   (validates, one line per mistake, exit status 1)
"""

from __future__ import annotations

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
from typing import Any

from tasks.lib.stage import PARAMS_FILE, SHARED_KEYS, Problem, read_params, read_yaml, replaced

DVC_FILE = Path("dvc.yaml")
CHECKED = Path(".anneal") / "params.checked"  # fingerprint of what was valid last time: saves the imports
LAID = Path(".anneal") / "params.laid"  # fingerprint of the params.yaml that a preset made
MODULE = re.compile(r"python -m (tasks\.(\w+))")
VARIABLE = re.compile(r"\$\{(\w+)\}")


def check(path: Path = PARAMS_FILE) -> None:
    """Validate every section against its stage's `Params`, or raise one Problem with a line per mistake.

    The stages import torch, so this is done in a child process (about 3 s), and only when something changed.
    """
    if not path.is_file():
        return
    read_yaml(path)  # a broken file needs no child
    mark = _fingerprint(path)
    if CHECKED.is_file() and CHECKED.read_text(encoding="utf-8") == mark:
        return
    command = [sys.executable, "-m", "flows.params", str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *_python_path()])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        own = [line.removeprefix("anneal: ") for line in lines if line.startswith("anneal: ")]
        raise Problem("\n".join(own or lines[-1:] or ["params.yaml could not be validated"]))
    CHECKED.parent.mkdir(exist_ok=True)
    CHECKED.write_text(mark, encoding="utf-8")


def problems(path: Path = PARAMS_FILE) -> Iterator[str]:
    """Every mistake in params.yaml in one line each. Imports the stages that dvc.yaml runs."""
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
            hint = (
                f"did you mean {near[0]}?" if near else f"known sections: {', '.join(dict.fromkeys(known))}"
            )
            yield f"{path}: the section {name} belongs to no stage; {hint}"
    for name in stages:
        try:
            read_params(name, importlib.import_module(f"tasks.{name}").Params, path)
        except Problem as problem:
            yield str(problem)
        except (ImportError, AttributeError) as error:
            yield f"tasks/{name}.py: {error}"


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
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found or not all(key.split(".")):
            raise Problem(f"--set {setting}: expected key=value, such as sft.trainer.learning_rate=2e-5")
        value: Any = YAML(typ="safe", pure=True).load(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        _merge(document, value, "", changed)
    written = StringIO()
    yaml.dump(document, written)
    _replace_when_valid(written.getvalue())
    return changed


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
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{PARAMS_FILE}"], capture_output=True, text=True, check=False
    )
    if keep or shown.returncode or shown.stdout == now:
        return now
    ours = LAID.is_file() and LAID.read_text(encoding="utf-8") == hashlib.sha256(now.encode()).hexdigest()
    if not ours:
        raise Problem(
            f"{PARAMS_FILE} has changes that are not committed; "
            "commit them, or pass --keep to lay the preset over them"
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


def _fingerprint(path: Path) -> str:
    """Of everything that the validation depends on: the file, the graph, the stages and what they import."""
    digest = hashlib.sha256(path.read_bytes())
    for file in (DVC_FILE, *sorted(Path("tasks").rglob("*.py"))):
        if file.is_file():
            digest.update(str(file).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _python_path() -> list[str]:
    return [
        path for path in (str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")) if path
    ]


def main(arguments: Sequence[str]) -> int:
    """Print every mistake; 1 if there was one."""
    try:
        found = list(problems(*map(Path, arguments)))
    except Problem as problem:
        found = [str(problem)]
    for line in found:
        print(f"anneal: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
