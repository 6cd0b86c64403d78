"""A row in another language is told by its text, where that is long enough to be sure."""

from __future__ import annotations

import sys

import pytest

from tasks.lib.data.languages import of_others
from tasks.lib.stage import Problem

GERMAN = "Der Zug nach Hamburg hat heute leider eine halbe Stunde Verspätung."
ENGLISH = "The train to Hamburg is half an hour late today, we are sorry to say."


def test_a_text_of_another_language_is_named_and_a_short_one_is_not() -> None:
    other = of_others(["en"])
    assert (other(GERMAN) or "").startswith("de with probability ")
    assert other(ENGLISH) is None
    assert other("Guten Tag") is None
    assert of_others(["de", "en"])(GERMAN) is None


def test_a_language_that_nobody_knows_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match=r"curate\.languages: english is not one of ace, af, "):
        of_others(["english"])
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(Problem, match=r"pip install -e '\.\[language\]'"):
        of_others(["en"])
