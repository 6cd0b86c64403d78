"""A template can neither reach Python nor make much out of little."""

from __future__ import annotations

import signal
import time

import pytest
from jinja2.exceptions import SecurityError, TemplateError

from tasks.lib.data import time_limit as limits
from tasks.lib.data.sandbox import MAX_TEXT, Dice, Renderer, Sandbox
from tasks.lib.data.time_limit import time_limit, watched

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
        return Renderer(sandbox, sandbox.parse(source))(sandbox.context(fields, Dice("seed")))


@pytest.mark.parametrize("source", BOMBS)
def test_a_long_text_is_refused_before_it_is_made(source: str) -> None:
    start = time.process_time()
    with pytest.raises((SecurityError, TemplateError)):
        rendered(source)
    assert time.process_time() - start < 1.5


def test_an_endless_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.2)
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
    assert rendered("{{ ', '.join(x) }}|{{ x | join('-') | upper }}|{{ x[0].split('b') }}", x=["abc", "d"]) == (
        "abc, d|ABC-D|['a', 'c']"
    )
    assert rendered("{% for a, b in zip(x, y) %}{{ a }}{{ b }} {% endfor %}", x=[1, 2], y="pq") == "1p 2q "
    assert rendered("{{ ['b', 'a', 'b'] | most_frequent }}") == "['b']"
    assert len(rendered("{{ 'a' * n }}", n=MAX_TEXT)) == MAX_TEXT


def test_choice_depends_on_the_row_only() -> None:
    sandbox = Sandbox()
    render = Renderer(sandbox, sandbox.parse("{{ x | choice }}{{ x | choice }}{{ x | choice }}"))
    contexts = [sandbox.context({"x": list("abcdefgh")}, Dice(f"row {i % 20}")) for i in range(40)]
    made, again = (
        [render(context) for context in contexts[:20]],
        [render(context) for context in contexts[20:]],
    )
    assert made == again
    assert len(set(made)) > 10


def test_what_one_text_sets_is_not_there_in_the_next() -> None:
    sandbox = Sandbox()
    context = sandbox.context({}, Dice("seed"))
    sets, shows = (Renderer(sandbox, sandbox.parse(source)) for source in ("{% set x = 1 %}{{ x }}", "{{ x }}"))
    assert sets(context) == "1"
    with pytest.raises(TemplateError, match="'x' is undefined"):
        shows(context)


def test_blocks_and_autoescape_are_those_of_jinja() -> None:
    assert rendered("{% block a %}<{{ x }}>{% endblock %}{% autoescape true %}{{ x }}{% endautoescape %}", x="<") == (
        "<<>&lt;"
    )


def test_a_timer_for_many_renders_stops_the_endless_one_and_is_taken_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    endless = "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"
    with pytest.raises(SecurityError, match=r"more than 0\.2 s"), watched():
        start = time.process_time()
        while time.process_time() < start + 0.5:  # longer than the limit, but many renders
            rendered("{{ x }}", x="short")
        rendered(endless)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) is before
