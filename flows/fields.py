"""The fields of a library's config class, read from its source: importing TRL takes as long as a short stage.

A stage names the class in its Params, `trainer: Annotated[dict[str, Any], "trl.trainer.sft_config.SFTConfig"]`,
so that a misspelt key stops the line before its first stage. The stage itself checks names and values again.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
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
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    if found is None:
        return frozenset()
    origin = dict(_imported(tree, module))
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    own = {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return frozenset(own).union(*(fields(origin.get(base, f"{module}.{base}")) for base in bases))


def _file(module: str) -> Path | None:
    """The source of a module. Only its package's folder is looked up: a parent would be imported."""
    package, *inner = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py") if inner else Path(spec.origin)
    return path if path.is_file() else None


def _imported(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Name -> module.Class for what a module imports from others."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((each.asname or each.name, f"{source}.{each.name}") for each in node.names)
