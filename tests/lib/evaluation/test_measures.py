"""Measures whose right values can be worked out by hand."""

from __future__ import annotations

import time
from decimal import Decimal
from itertools import combinations

import pytest

from tasks.lib.data.sources import MEASURES
from tasks.lib.evaluation.measures import content_metric, named_choice, normalised, number, score, words
from tasks.lib.stage import Problem


@pytest.mark.parametrize(("measure", "label", "right", "wrong"), [
    ("exact", "red", [" red\n"], ["Red", "red.", ""]),
    ("normalised", "The Beatles", ["beatles", "The  beatles!", "a Beatles."], ["Beatles band", ""]),
    ("number", "72", ["72", "$72.00", "48/2 = 24, so 72", "####72 of 100", "1 #### 72\n\nQuestion: 5"],
     ["71", "-72", "172", "none", "", "72 #### 71", "#### none", "7 2"]),
    ("contains", "New York", ["It is new york.", "New York"], ["New Yorker", "york new", ""]),
    ("contains", "no", ["No, never"], ["not known", "know"]),
    ("contains", "3", ["3 apples", "(3)"], ["3.5 apples", "13"]),
])  # fmt: skip
def test_answers_are_right_or_wrong(measure: str, label: str, right: list[str], wrong: list[str]) -> None:
    assert [score(measure, label, answer) for answer in right] == [1.0] * len(right)
    assert [score(measure, label, answer) for answer in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(("text", "value"), [
    ("1,234,567 people", "1234567"), ("costs $1,000.50.", "1000.50"), ("-3", "-3"), ("10-3", "3"), ("10 - 3", "3"),
    ("-$5", "-5"), ("1,2,3", "3"), (".5", "0.5"), ("7.", "7"), ("50%", "50"), ("5 #### 7 8", "7"), ("12,5", "5"),
    ("5 ####", None), ("ten", None), ("", None),
])  # fmt: skip
def test_the_number_of_a_text(text: str, value: str | None) -> None:
    assert number(text) == (None if value is None else Decimal(value))


def test_normalised_text_is_what_squad_compares() -> None:
    assert normalised("  An  apple-a-day, the THEORY!") == "appleaday theory"
    assert words("Don't pay 1,000.50 -- Straße") == ["don", "t", "pay", "1,000.50", "strasse"]


@pytest.mark.parametrize(("answer", "named"), [
    ("Entailment", "entailment"), ("It is not entailment.", "not entailment"),
    ("entailment, not neutral", "entailment"),
    ("It is neutral", "neutral"), ("Is it neutral or entailment?", None), ("neutrally", None), ("", None),
])  # fmt: skip
def test_the_choice_that_an_answer_names(answer: str, named: str | None) -> None:
    choices = ["entailment", "not entailment", "neutral"]
    assert named_choice(answer, choices) == named
    assert [score("choice", choice, answer, choices) for choice in choices] == [float(c == named) for c in choices]


def test_a_choice_may_be_a_letter_and_needs_choices() -> None:
    assert score("choice", "(B)", "b. Because it rains", ["(A)", "(B)"]) == 1.0
    assert score("choice", "B", "B", None) == 0.0


def test_token_f1_counts_shared_words() -> None:
    # shared: cat, sat; 3 words of the label and 4 of the answer: precision 2/4, recall 2/3
    assert score("token_f1", "The cat sat down", "cat cat sat there") == pytest.approx(2 * (1 / 2) * (2 / 3) / (7 / 6))
    assert score("token_f1", "the", "a") == 1.0 and score("token_f1", "the", "cat") == 0.0


def longest_common(left: list[str], right: list[str]) -> int:
    """By trying all subsequences."""
    for size in range(len(left), 0, -1):
        for kept in combinations(left, size):
            places = iter(right)
            if all(word in places for word in kept):
                return size
    return 0


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    pytest.importorskip("rapidfuzz")
    # Lin (2004), section 3.1: S1 police killed the gunman, S2 police kill the gunman, S3 the gunman kill police
    assert score("rouge_l", "police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert score("rouge_l", "police killed the gunman", "the gunman kill police") == pytest.approx(0.5)
    label, answer = "a b c a b d e", "b a c b b e a d"
    common = longest_common(label.split(), answer.split())
    assert score("rouge_l", label, answer) == pytest.approx(2 * common / 15)
    assert score("rouge_l", "...", "...") == 0.0


def test_a_pattern_is_found_and_its_label_group_must_be_the_label() -> None:
    assert score(r"regex:(?i)\byes\b", "anything", "Oh, Yes!") == 1.0
    assert score(r"regex:is (?P<label>\w+)\.?$", "blue", "the sky is blue.") == 1.0
    assert score(r"regex:is (?P<label>\w+)$", "blue", "it is red") == 0.0
    assert score(r"regex:red|(?P<label>\d)", "3", "red") == 0.0  # a group that took no part


def test_a_pattern_that_never_ends_is_stopped() -> None:
    before = time.process_time()
    with pytest.raises(Problem, match="runs for more than 2 s on one answer; make it simpler"):
        score(r"regex:^(a+)+$", "b", "a" * 60 + "b")
    assert time.process_time() - before < 10


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_of_a_source_finds_the_label_itself_right(measure: str) -> None:
    if measure == "rouge_l":
        pytest.importorskip("rapidfuzz")
    assert score(measure, "plan 42", "plan 42", ["plan 42", "plan 7"]) == 1.0


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(Problem, match="the measure 'bleu' of a row is not known"):
        score("bleu", "a", "a")


def test_the_score_decides_where_there_is_one() -> None:
    assert content_metric({"exact_match", "score"}) == "score"
    assert content_metric({"exact_match"}) == "exact_match"
    assert content_metric({"sft.rows.exact_match", "dpo.rows.score"}, "sft.rows.") == "exact_match"
