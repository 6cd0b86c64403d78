"""Jinja for templates that somebody else wrote: no access to Python, and bounded output, memory and time.

Jinja's own sandbox stops `{{ x.__class__ }}` but not `{{ 'a' * 300000000 }}`: here whatever can make a long
text out of a short one is bounded before it is made, and a render stops after two seconds of processor time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any

from jinja2 import StrictUndefined, meta, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tasks.lib.data.substitution import pieces
from tasks.lib.data.time_limit import TooMuch

MAX_TEXT = 200_000  # characters of any text that a template makes on the way
PLAIN_FILTERS = (
    "abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map", "max", "min",
    "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort", "unique",
)  # fmt: skip
TEXT_FILTERS = ("capitalize", "lower", "string", "title", "trim", "upper", "wordcount")
METHODS = frozenset((
    # of texts
    "capitalize", "count", "endswith", "find", "index", "isalpha", "isdigit", "isupper", "join", "lower", "lstrip",
    "partition", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "title", "upper",
    # of dictionaries
    "get", "items", "keys", "values",
))  # fmt: skip
BRIEF = frozenset((str, int, float, bool, type(None)))  # what str() needs no second look at
LOOP = frozenset(("index", "index0", "first", "last", "length"))  # what templates ask of `loop`


def _bounded(size: int) -> None:
    if size > MAX_TEXT:
        raise TooMuch(f"makes a text or list of {size:,} parts; at most {MAX_TEXT:,} are allowed")


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1


def _text(value: Any) -> str:
    """str(value), but only when that is short: a list of lists can be small and its text huge."""
    if value.__class__ in BRIEF:
        return str(value)
    size, parts = 0, [value]
    while parts and not isinstance(value, str):
        part = parts.pop()
        size += len(part) if isinstance(part, str) else 1
        _bounded(size)
        if isinstance(part, dict):
            parts += [*part.keys(), *part.values()]
        elif isinstance(part, (list, tuple)):
            parts += part
    return str(value)


def _joined(parts: Iterable[Any]) -> str:
    """The texts of the parts, a few at a time: with the first ones beyond the bound it stops."""
    texts: list[str] = []
    size, rest = 0, iter(parts)
    while batch := list(islice(rest, 64)):
        batch = [part if part.__class__ is str else _text(part) for part in batch]
        size += sum(map(len, batch))
        _bounded(size)
        texts += batch
    return "".join(texts)


def _join(separator: str, items: Iterable[Any]) -> str:
    texts = [_text(item) for item in items]
    _bounded(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    times = text.count(old) if old else len(text) + 1  # an empty text is between all characters
    _bounded(len(text) + times * len(new))
    return text.replace(old, new, count)


def _join_filter(items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    if attribute:
        items = (item[attribute] for item in items)
    return _join(str(separator), items)


def _of_text(filter: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value, *arguments, **named: filter(_text(value), *arguments, **named)


def _range(*arguments: int) -> range:
    made = range(*arguments)
    _bounded(len(made))
    return made


@pass_context
def _choice(context: Context, items: Iterable[Any]) -> Any:
    """promptsource's `choice`, but drawn from the row's own generator: the same row, the same draw."""
    return context["dice of the row"].random.choice(list(items))


def _most_frequent(items: Iterable[Any]) -> list[Any]:
    """promptsource's `most_frequent`: all items that occur as often as the most frequent one."""
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]]


class _Generator(CodeGenerator):
    """Jinja's compiler, with the sandbox's bounds where a template joins texts and shows values."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # `a ~ b`
        self.write("environment.concat((")
        for operand in node.nodes:
            self.visit(operand, frame)
            self.write(", ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:  # `{{ a }}`
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:  # a text is shown as it is; two calls that do nothing would take longer than the rest
            self.write("(shown if (shown := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_post(node, frame, finalize)
        else:
            self.write(").__class__ is str else environment.finalize(shown))")


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of prompt templates: StrictUndefined, few filters and methods, bounded operators."""

    code_generator_class = _Generator
    concat = staticmethod(_joined)  # type: ignore[assignment]
    intercepted_binops = frozenset(["+", "*", "**", "%", "//"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_text)
        of_jinja = self.filters
        self.filters = {
            "join": _join_filter,
            "replace": _replace,
            "choice": _choice,
            "most_frequent": _most_frequent,
        }
        for name in PLAIN_FILTERS:
            self.filters[name] = of_jinja[name]
        for name in TEXT_FILTERS:
            self.filters[name] = _of_text(of_jinja[name])
        self.globals = {"zip": zip, "range": _range, "dict": dict, "namespace": self.globals["namespace"]}

    def context(self, fields: dict[str, Any], dice: Dice) -> Context:
        """What the texts of one row see; made once for all of them.

        As `template.new_context` does, without its chained dictionaries: half the time of a short render.
        """
        return Context(self, {**self.globals, **fields, "dice of the row": dice}, None, {})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if obj.__class__ is LoopContext and attribute in LOOP:
            return getattr(obj, attribute)  # the rules below take longer than the rest of a short loop
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and isinstance(obj, (str, list, dict, tuple)):
            return attr in METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:
            raise TooMuch("formats text with .format; write it with {{ }} instead")
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # how Jinja names them: a template's own keywords must not clash
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join":
            return _join(owner, *args)
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _bounded(_size(left) + _size(right))
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if hasattr(sequence, "__len__") and isinstance(times, int):
                    _bounded(len(sequence) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            raise TooMuch("formats text with %; write it with {{ }} instead")
        if isinstance(left, int) and isinstance(right, int) and operator in ("*", "**"):
            times = abs(right) if operator == "**" else 1
            _bounded(left.bit_length() * times + right.bit_length())
        return super().call_binop(context, operator, left, right)


class Dice:
    """The draws of one row for the filter `choice`: made from `seed` when first needed, which is seldom."""

    def __init__(self, seed: str) -> None:
        self._seed = seed

    @cached_property
    def random(self) -> Random:
        return Random(self._seed)


class Renderer:
    """A compiled text: `Sandbox.context` -> text, bounded in output; wrap calls of it in `time_limit`.

    `names` are the variables that it uses and the sandbox lacks; `pieces` are its texts and fields where it only
    substitutes, None where it does more.
    """

    def __init__(self, sandbox: Sandbox, tree: nodes.Template) -> None:
        self.names = meta.find_undeclared_variables(tree) - sandbox.globals.keys()
        self.pieces = pieces(tree)
        self._template = sandbox.from_string(tree)

    def __call__(self, context: Context) -> str:
        context.blocks = {name: [block] for name, block in self._template.blocks.items()}
        text = _joined(self._template.root_render_func(context))
        if context.vars:  # what one text sets is not there in the next one
            context.vars.clear()
            context.exported_vars.clear()
        return text
