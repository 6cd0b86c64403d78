"""Which files a stage's code is made of, read from its imports: `python -m flows.code_deps --write`.

DVC runs a stage again when a file that it lists has changed, so dvc.yaml lists every file of this project that the
stage can load. These lists are generated, between the lines `# code` and `# end of code` of dvc.yaml and of
tasks/lib/data/shards.py. Without --write it only says which files are out of date, and exits with status 1.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "data_contracts")
GRAPH, SHARDS = ROOT / "dvc.yaml", ROOT / "tasks" / "lib" / "data" / "shards.py"
BEGIN, END = "# code (python -m flows.code_deps --write)", "# end of code"
STAGE = re.compile(r"-m tasks\.(\w+)")
LISTED_AS_A_FOLDER = "data_contracts"  # by hand: which contract a check loads is its argument


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of everything that the project installs."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


@functools.cache
def imports(module: str, at_run_time_only: bool = False) -> frozenset[str]:
    """What a module imports, anywhere in it: dotted names of this project's modules, top names of others."""
    found: set[str] = set()
    for node in _nodes(ast.parse(modules()[module].read_text(encoding="utf-8")), at_run_time_only):
        if isinstance(node, ast.Import):
            found.update(_known(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_known(f"{node.module}.{alias.name}") for alias in node.names)
    return frozenset(found)


def _nodes(tree: ast.AST, at_run_time_only: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_run_time_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _nodes(node, at_run_time_only)


def _known(name: str) -> str:
    """The module of this project that an imported name is, or is in; of another package its top name."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return parts[0]
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next(prefix for prefix in prefixes if prefix in modules())


def reached(module: str) -> set[str]:
    """The project's modules that a run of `module` can load, itself included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in modules() and name not in found:
            found.add(name)
            waiting += imports(name, at_run_time_only=True)
    return found


def code_of(module: str) -> list[str]:
    """The files that a run of `module` can load, relative to the project; an empty __init__.py is nothing to load."""
    paths = (modules()[name] for name in reached(module))
    files = sorted(path.relative_to(ROOT).as_posix() for path in paths if path.stat().st_size)
    return [file for file in files if not file.startswith(f"{LISTED_AS_A_FOLDER}/")]


def with_lists(text: str, list_of: Callable[[str], list[str]]) -> str:
    """The text with every marked list replaced by `list_of(the lines before it)`."""
    lines: list[str] = []
    is_old = False
    for line in text.splitlines():
        if line.strip() == END:
            is_old = False
        if not is_old:
            lines.append(line)
        if line.strip() == BEGIN:
            is_old = True
            indent = line[: len(line) - len(line.lstrip())]
            lines += [indent + item for item in list_of("\n".join(lines))]
    return "\n".join(lines) + "\n"


def _of_stage(before: str) -> list[str]:
    return [f"- {file}" for file in code_of(f"tasks.{STAGE.findall(before)[-1]}")]


def _of_shards(_: str) -> list[str]:
    room = "tasks/lib/data/"
    files = [file for file in code_of("tasks.lib.data.instructions") if file.startswith(room)]
    return [f'"{file.removeprefix(room)}",' for file in files]


def generated() -> dict[Path, str]:
    """The files with generated lists, and what each should hold."""
    return {
        GRAPH: with_lists(GRAPH.read_text(encoding="utf-8"), _of_stage),
        SHARDS: with_lists(SHARDS.read_text(encoding="utf-8"), _of_shards),
    }


def main(write: bool) -> int:
    """Print the files whose lists are out of date, and rewrite them if asked to."""
    stale = {path: text for path, text in generated().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{path.relative_to(ROOT)}: {'written' if write else 'out of date; run it with --write'}")
        if write:
            path.write_text(text, encoding="utf-8")
    return 0 if write or not stale else 1


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
