"""A template can neither reach Python nor make much out of little."""

from __future__ import annotations

import time

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from tasks.lib.data import sandbox as sandboxes
from tasks.lib.data.sandbox import MAX_TEXT, Dice, Renderer, Sandbox, time_limit

BOMBS = [
    "{{ 'a' * 300000000 }}",
    "{{ 300000000 * 'a' }}",
    "{{ [1] * 300000000 }}",
    "{{ [[1] * 100000] * 100000 }}",
    "{{ [['a' * 100000] * 100000] | upper }}",
    "{{ 'a' | center(300000000) }}",
    "{{ 'a'.ljust(300000000) }}",
    "{{ '{:300000000}'.format(1) }}",
    "{{ '%300000000d' % 1 }}",
    "{{ ('a' * 100000).replace('', 'a' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000).join(['b'] * 100000) }}",
    "{{ (['b'] * 100000) | join('a' * 100000) }}",
    "{% set x = 'a' * 1000 %}{% set x = x ~ x ~ x ~ x %}" + "{% set x = x ~ x ~ x ~ x %}" * 9 + "{{ x }}",
    "{% set x = 'a' * 1000 %}" + "{% set x %}{{ x }}{{ x }}{{ x }}{% endset %}" * 9 + "{{ x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% for i in range(100000) %}aaaaaaaa{% endfor %}",
    "{{ range(1000000000) | list }}",
    "{{ 2 ** 1000000000 }}",
]


def rendered(source: str, **fields: object) -> str:
    sandbox = Sandbox()
    with time_limit():
        return Renderer(sandbox, sandbox.parse(source))(fields, Dice("seed"))


@pytest.mark.parametrize("source", BOMBS)
def test_a_long_text_is_refused_before_it_is_made(source: str) -> None:
    start = time.process_time()
    with pytest.raises((SecurityError, TemplateError)):
        rendered(source)
    assert time.process_time() - start < 1.5


def test_an_endless_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxes, "SECONDS", 0.2)
    with pytest.raises(SecurityError, match=r"runs for more than 0\.2 s"):
        rendered("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ text.__class__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ zip.__self__ }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ self.__dict__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ items.append(1) }}",
    "{{ config }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_python_is_out_of_reach(source: str) -> None:
    with pytest.raises((TemplateError, TypeError)):
        rendered(source, text="x", items=[])


def test_what_templates_need_still_works() -> None:
    assert rendered("{{ 'a' ~ 1 ~ [2] }} {{ 3 * 'ab' }} {{ 1 + 2 }}") == "a1[2] ababab 3"
    assert rendered(
        "{{ ', '.join(x) }}|{{ x | join('-') | upper }}|{{ x[0].split('b') }}", x=["abc", "d"]
    ) == ("abc, d|ABC-D|['a', 'c']")
    assert rendered("{% for a, b in zip(x, y) %}{{ a }}{{ b }} {% endfor %}", x=[1, 2], y="pq") == "1p 2q "
    assert rendered("{{ ['b', 'a', 'b'] | most_frequent }}") == "['b']"
    assert len(rendered("{{ 'a' * n }}", n=MAX_TEXT)) == MAX_TEXT


def test_choice_depends_on_the_row_only() -> None:
    sandbox = Sandbox()
    render = Renderer(sandbox, sandbox.parse("{{ x | choice }}{{ x | choice }}{{ x | choice }}"))
    made = [render({"x": list("abcdefgh")}, Dice(f"row {i}")) for i in range(20)]
    assert made == [render({"x": list("abcdefgh")}, Dice(f"row {i}")) for i in range(20)]
    assert len(set(made)) > 10
