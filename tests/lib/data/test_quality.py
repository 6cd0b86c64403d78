"""Refusals and repetition: found where they are, and not in honest answers."""

from __future__ import annotations

import pytest

from tasks.lib.data.quality import refusal, repetition


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I have no opinion.",
        "I'm sorry, but I can’t help with that.",
        "Sorry, I cannot do this.",
        "I am unable to provide legal advice.",
        "Well, I am just a language model.",
    ],
)
def test_a_refusal_is_found(answer: str) -> None:
    assert refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Take a rest.",
        "Penguins cannot fly.",
        "The treaty says that nobody can help it. I cannot stress this enough.",
        "An AI is a program.",
    ],
)
def test_an_answer_is_no_refusal(answer: str) -> None:
    assert refusal(answer) is None


def test_repetition_is_the_share_of_the_most_frequent_run() -> None:
    assert repetition("a b c d e f") == 0.0
    assert repetition("go on and go on and go on and") == 3 / 7  # "go on and" is 3 of 7 runs
    assert repetition("ha " * 10) == 1.0
    assert repetition("ha") == 0.0
