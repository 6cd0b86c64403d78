"""The fast path makes what the sandbox makes, or leaves the row to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.lib.data.sandbox import Dice, Renderer, Sandbox
from tasks.lib.data.substitution import Field, pieces, split, substitution
from tasks.lib.data.template_files import read_templates
from tasks.lib.data.templates import render

VALUES: dict[str, Any] = {
    "text": "50% off {{ label }} {v0} \\ ' \" |||",
    "label": 1,
    "share": 0.5,
    "yes": True,
    "nothing": None,
    "names": ["no", "yes"],
    "map": {"a": "A"},
    "key": "a",
}
QUICK = [
    "100% {{ text }}\n",
    "{{ label }}{{ share }}{{ yes }}{{ nothing }}",
    "{{ names[label] }} {{ names[0] }} {{ map[key] }} {{ map['a'] }} {{ names[yes] }}",
    "{{ 'a constant' }} and {{ text[0] }}",
    "",
]
SLOW = ["{{ text | upper }}", "{% if label %}a{% endif %}", "{{ map.a }}", "{{ label + 1 }}", "{{ self }}"]


@pytest.mark.parametrize("source", QUICK)
def test_substituted_text_is_jinjas_text(source: str) -> None:
    sandbox = Sandbox()
    renderer = Renderer(sandbox, sandbox.parse(source))
    assert renderer.pieces is not None
    assert substitution([renderer.pieces], {}, 1000)(VALUES) == (renderer(sandbox.context(VALUES, Dice(""))),)


@pytest.mark.parametrize("source", SLOW)
def test_templates_that_do_more_are_for_the_sandbox(source: str) -> None:
    assert pieces(Sandbox().parse(source)) is None


def test_rows_that_hold_more_are_for_the_sandbox() -> None:
    made = substitution([["a ", Field("x")]], {}, 10)
    assert made({"x": "b"}) == ("a b",)
    for row in ({}, {"x": ["b"]}, {"x": {"b": 1}}, {"x": "b" * 10}):
        assert made(row) is None
    assert substitution([[Field("x", 5)]], {"x": ["a"]}, 10)({}) is None


def test_marks_split_texts_and_never_fields() -> None:
    assert split(["a|b", Field("x"), "|"], "|") == [["a"], ["b", Field("x"), ""], [""]]


def test_every_shared_template_renders_the_same_on_both_paths(shared: Path) -> None:
    fields = {"text": " It's 5% ||| {{ x }} ", "sentence": "fine .", "label": 1, "idx": 3}
    fields |= {"sentence1": "A b.", "sentence2": "c", "premise": "p", "hypothesis": "h", "question": "q"}
    quick = 0
    for file in sorted((shared / "templates").rglob("templates.yaml")):
        for template in read_templates(file.parent):
            if template.substitution is None or not template.fields <= fields.keys():
                continue
            quick += 1
            fast = render(template, fields, "w", "s")
            template.__dict__["substitution"] = None
            assert render(template, fields, "w", "s") == fast, template.name
    assert quick >= 40
