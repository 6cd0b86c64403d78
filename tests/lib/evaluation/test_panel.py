"""The panel: what it likes is read off one file, and mistakes in that file are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.lib.evaluation.panel import Panel, read_panel
from tasks.lib.stage import Problem

GOOD = """
closing: ". Happy to help!"
utility: {content: 2.0, closing: 1.0}
tie_below: 0.1
annotators:
  - {name: ada, content: 2.0, closing: 1.0, noise: 0.3}
  - {name: bo, content: 1.0, closing: 3.0, noise: 0}
"""
RED = {"label": "red", "measure": "exact", "choices": None}


def panel(tmp_path: Path, text: str = GOOD) -> Panel:
    path = tmp_path / "panel.yaml"
    path.write_text(text, encoding="utf-8")
    return read_panel(path)


@pytest.mark.parametrize(("answer", "utility"), [
    ("red", 2.0), (" red\n", 2.0), ("red. Happy to help!", 3.0), ("red. Happy to help! ", 3.0),
    ("blue", 0.0), ("blue. Happy to help!", 1.0), (". Happy to help!", 1.0), ("", 0.0), ("Red", 0.0),
    ("red. Happy to help!. Happy to help!", 1.0),  # the second closing is content: repeating it does not pay
    ("red Happy to help!", 0.0), ("red. Happy to help! red", 0.0),
])  # fmt: skip
def test_utility_is_content_plus_closing(tmp_path: Path, answer: str, utility: float) -> None:
    assert panel(tmp_path).utility(RED, answer) == utility


def test_a_closing_that_begins_with_a_space_needs_one(tmp_path: Path) -> None:
    spaced = panel(tmp_path, GOOD.replace(". Happy", " Happy"))
    assert spaced.closing == " Happy to help!"
    assert spaced.content("red Happy to help!") == "red"
    assert spaced.has_closing("Happy to help!") and spaced.content("Happy to help!") == ""
    assert not spaced.has_closing("redHappy to help!")


def test_a_label_may_carry_the_closing_itself(tmp_path: Path) -> None:
    assert panel(tmp_path).is_right("red. Happy to help!", "red")


def test_the_content_is_as_right_as_the_measure_of_the_task_says(tmp_path: Path) -> None:
    one = panel(tmp_path)
    row = {"label": "red car", "measure": "token_f1", "choices": None}
    assert one.score(row, "a red bus. Happy to help!") == 0.5  # one of two words
    assert one.utility(row, "a red bus. Happy to help!") == 2.0  # half the content, and the closing
    assert one.score(RED, "Red") == 0.0 and one.score(RED | {"measure": "normalised"}, "Red") == 1.0


def test_annotators_weigh_as_they_do(tmp_path: Path) -> None:
    one = panel(tmp_path)
    assert one.utility_to(one.annotators[1], RED, "blue. Happy to help!") == 3.0
    assert one.utility_to(one.annotators[1], RED, "red") == 1.0


@pytest.mark.parametrize(("before", "after", "message"), [
    ("tie_below: 0.1", "tie_belw: 0.1", "tie_belw is not a key; did you mean tie_below?"),
    ("noise: 0.3", "nois: 0.3", "annotators.0.nois is not a key; did you mean noise?"),
    ("{content: 2.0, closing: 1.0}", "{content: 2.0}", "utility.closing is missing"),
    ("noise: 0.3", "noise: -1", "annotators.0.noise: input should be greater than or equal to 0"),
    ("noise: 0.3", "noise: .nan", "annotators.0.noise: "),
    ("name: bo", "name: ada", "annotators: ada occurs twice"),
    ('". Happy to help!"', '" "', "closing: "),
    ("tie_below: 0.1", "tie_below: 0.1\ntie_below: 0.2", "duplicate key"),
])  # fmt: skip
def test_mistakes_name_file_and_key(tmp_path: Path, before: str, after: str, message: str) -> None:
    with pytest.raises(Problem) as caught:
        panel(tmp_path, GOOD.replace(before, after, 1))
    assert "panel.yaml" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_file_without_keys_is_a_problem(tmp_path: Path, text: str) -> None:
    with pytest.raises(Problem, match="expected the keys"):
        panel(tmp_path, text)
