"""The fields of a library's configuration class, read from its source.

Asking the class itself imports TRL, which takes seven seconds: longer than some stages, and too long for finding a
misspelt key. A list of the names here would be wrong with the next version of TRL. The sources of all classes that
params.yaml has sections for are read in 0.2 seconds, and a test compares what is read with the classes.

A settings file names the class at the field, `trainer: Annotated[dict[str, Any], "trl.trainer.sft_config.SFTConfig"]`,
so that a misspelt key is found before the first stage starts. The stage itself checks names and values again.
"""

from __future__ import annotations

import ast
import functools
from importlib.util import find_spec
from pathlib import Path

# imported from the package's front page, which is filled at run time
ELSEWHERE = {"transformers.TrainingArguments": "transformers.training_args.TrainingArguments"}


@functools.cache
def fields(place: str) -> frozenset[str]:
    """Names of the annotated fields of the class `place` (module.Class) and of its bases; empty if not found."""
    module, _, name = ELSEWHERE.get(place, place).rpartition(".")
    file = _file(module)
    if file is None:
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imported = _imported(tree, module)
    names: set[str] = set()
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or node.name != name:
            continue
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                names.add(statement.target.id)
        for base in node.bases:
            if isinstance(base, ast.Name):
                names |= fields(imported.get(base.id, f"{module}.{base.id}"))
    return frozenset(names)


def _file(module: str) -> Path | None:
    """The source of a module. Only its package's folder is looked up: a parent would be imported."""
    package, *inner = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin)
    if inner:
        path = path.parent.joinpath(*inner).with_suffix(".py")
    return path if path.is_file() else None


def _imported(tree: ast.Module, module: str) -> dict[str, str]:
    """Name -> module.Class of what a module imports from other modules."""
    places: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        above = module.split(".")[: -node.level] if node.level else []  # of a relative import
        if node.module:
            above = [*above, node.module]
        for alias in node.names:
            places[alias.asname or alias.name] = ".".join([*above, alias.name])
    return places
