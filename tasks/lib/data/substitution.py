"""The fast path of templates that only put fields into text: Python's own formatting, byte for byte Jinja's result.

Most templates are `{{ text }} ... {{ answer_choices[label] }}`. A row with anything but plain texts and numbers,
with a missing field or a very long text is left to the sandbox, which renders it or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes

PLAIN = frozenset((str, int, float, bool, type(None)))  # str() shows these as Jinja does, and briefly


@dataclass(frozen=True)
class Field:
    """`name`, or `name[key]` where the key is a constant or the name of a field."""

    name: str
    key: str | int | None = None
    key_is_field: bool = False


Pieces = list[str | Field]
Substitution = Callable[[dict[str, Any]], tuple[str, ...] | None]  # None: this row is for the sandbox


def pieces(tree: nodes.Template) -> Pieces | None:
    """A template of texts and fields as the list of them; None for a template that does more."""
    found: Pieces = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for part in output.nodes:
            piece = _piece(part)
            if piece is None:
                return None
            found.append(piece)
    return found


def _piece(part: nodes.Expr) -> str | Field | None:
    if isinstance(part, nodes.TemplateData):
        return part.data
    if isinstance(part, nodes.Const) and type(part.value) is str:
        return part.value
    if isinstance(part, nodes.Name) and part.name != "self":  # `self` is Jinja's own
        return Field(part.name)
    if isinstance(part, nodes.Getitem) and isinstance(part.node, nodes.Name) and part.node.name != "self":
        if isinstance(part.arg, nodes.Name) and part.arg.name != "self":
            return Field(part.node.name, part.arg.name, key_is_field=True)
        if isinstance(part.arg, nodes.Const) and type(part.arg.value) in (str, int):
            return Field(part.node.name, part.arg.value)
    return None


def split(listed: Pieces, mark: str) -> list[Pieces]:
    """The pieces before, between and after every `mark` in the texts."""
    parts: list[Pieces] = [[]]
    for piece in listed:
        if isinstance(piece, Field):
            parts[-1].append(piece)
            continue
        first, *rest = piece.split(mark)
        parts[-1].append(first)
        parts += [[text] for text in rest]
    return parts


def substitution(texts: Sequence[Pieces], constants: dict[str, Any], longest: int) -> Substitution:
    """A function (fields) -> the texts. `constants` are fields of every row, such as the answer choices.

    It is compiled to one expression: a loop over the fields would take twice the time.
    """
    names: dict[str, str] = {}  # Python expression -> the variable that holds it
    made = []
    patterns = []
    for listed in texts:
        patterns.append("".join("%s" if isinstance(p, Field) else p.replace("%", "%%") for p in listed))
        used = [
            names.setdefault(_expression(piece, constants), f"v{len(names)}")
            for piece in listed
            if isinstance(piece, Field)
        ]
        made.append(f"patterns[{len(patterns) - 1}] % ({''.join(name + ',' for name in used)})")
    plain = [f"({name} := {value}).__class__ in plain" for value, name in names.items()]
    # nothing but repr() of the template's names and constants goes into the source
    show = eval(
        f"lambda f: ({''.join(text + ',' for text in made)}) if {' and '.join(plain) or 'True'} else None",
        {"patterns": patterns, "plain": PLAIN, "constants": constants},
    )

    def substituted(fields: dict[str, Any]) -> tuple[str, ...] | None:
        try:
            shown: tuple[str, ...] | None = show(fields)
        except (LookupError, TypeError, AttributeError):
            return None
        if shown is None:
            return None
        for text in shown:
            if len(text) > longest:
                return None
        return shown

    return substituted


def _expression(field: Field, constants: dict[str, Any]) -> str:
    value = f"{'constants' if field.name in constants else 'f'}[{field.name!r}]"
    if field.key is None:
        return value
    return f"{value}[f[{field.key!r}]]" if field.key_is_field else f"{value}[{field.key!r}]"
