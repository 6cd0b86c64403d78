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
    listed: Pieces = []
    for output in tree.body:
        if not isinstance(output, nodes.Output):
            return None
        for part in output.nodes:
            piece = _piece(part)
            if piece is None:
                return None
            listed.append(piece)
    return listed


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
    variables: dict[str, str] = {}  # Python expression of a field -> the variable that holds its value
    patterns: list[str] = []  # of each text, for the operator %
    shown_texts = ""
    for number, listed in enumerate(texts):
        pattern = values = ""
        for piece in listed:
            if isinstance(piece, Field):
                pattern += "%s"
                values += variables.setdefault(_expression(piece, constants), f"v{len(variables)}") + ","
            else:
                pattern += piece.replace("%", "%%")
        patterns.append(pattern)
        shown_texts += f"patterns[{number}] % ({values}),"
    all_plain = "True"
    for expression, variable in variables.items():
        all_plain += f" and ({variable} := {expression}).__class__ in plain"
    # lambda f: (patterns[0] % (v0,), ...,) if True and (v0 := f['text']).__class__ in plain and ... else None
    # Nothing but repr() of the template's names and constants goes into the source.
    show = eval(
        f"lambda f: ({shown_texts}) if {all_plain} else None",
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
    """Python for the field's value among the row's fields `f` and the constants."""
    value = f"f[{field.name!r}]"
    if field.name in constants:
        value = f"constants[{field.name!r}]"
    if field.key is None:
        return value
    if field.key_is_field:
        return f"{value}[f[{field.key!r}]]"
    return f"{value}[{field.key!r}]"
