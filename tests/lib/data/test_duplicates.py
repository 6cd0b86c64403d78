"""Near duplicates and contamination on texts whose overlap can be counted by hand."""

from __future__ import annotations

import time
from random import Random

import pytest

from tasks.lib.data.duplicates import Item, Match, contamination, jaccard, near_duplicates, shingles, words_of

LONG = "one two three four five six seven eight nine ten eleven twelve"


def test_words_ignore_case_punctuation_and_spacing() -> None:
    assert words_of("  The cat's  HAT, naïve! ") == ["the", "cat", "s", "hat", "naïve"]
    assert shingles(["a", "b", "c", "d"], 3) == {"a b c", "b c d"}
    assert shingles(["a"], 3) == {"a"}
    assert jaccard({"a", "b", "c"}, {"b", "c", "d"}) == 0.5


def test_the_later_of_two_near_duplicates_goes_and_drops_nothing_further() -> None:
    words = LONG.split()
    items = [
        Item("first", "task", LONG),
        Item("same", "task", LONG.upper() + "!"),
        Item("last word differs", "task", " ".join([*words[:-1], "other"])),  # 9 of 11 shingles shared
        Item("other group", "another task", LONG),
        Item("different", "task", "something else altogether is said here"),
    ]
    assert list(near_duplicates(items, 0.8)) == [(1, 0, 1.0), (2, 0, 9 / 11)]
    assert list(near_duplicates(items, 0.9)) == [(1, 0, 1.0)]


def test_texts_shorter_than_a_shingle_are_duplicates_only_when_equal() -> None:
    items = [Item(str(i), "task", text) for i, text in enumerate(("red", "red.", "blue", ""))]
    assert list(near_duplicates(items, 0.8)) == [(1, 0, 1.0)]


def test_a_long_enough_match_is_found_with_both_coverages() -> None:
    training = [("t", f"before it {LONG} and after it")]  # 17 words
    assert list(contamination(training, [("e", LONG)])) == [Match("t", "e", 1.0, 12 / 17)]
    longer = LONG + " x" * 12
    assert list(contamination(training, [("e", longer)])) == [Match("t", "e", 0.5, 12 / 17)]
    assert list(contamination(training, [("e", longer + " x")])) == []


def test_a_run_must_be_unbroken_and_eight_words_long() -> None:
    words = LONG.split()
    broken = " ".join([*words[:7], "x", *words[7:]])  # 7 and 5 words in a row
    assert list(contamination([("t", broken)], [("e", LONG)])) == []
    assert list(contamination([("t", " ".join(words[:8]))], [("e", LONG)])) == [Match("t", "e", 8 / 12, 1.0)]


def test_short_texts_match_only_as_a_whole() -> None:
    assert list(contamination([("t", "Map, key, ball")], [("e", "map key ball")])) == [Match("t", "e", 1.0, 1.0)]
    assert list(contamination([("t", "map key ball drum")], [("e", "map key ball")])) == []


def test_the_best_match_comes_first() -> None:
    evaluation = [("half", LONG + " x" * 10), ("whole", LONG)]
    assert [m.evaluation for m in contamination([("t", LONG)], evaluation)] == ["whole", "half"]


@pytest.mark.parametrize("rows", [20_000])
def test_twenty_thousand_short_rows_take_seconds(rows: int) -> None:
    random = Random(1)
    vocabulary = [f"w{i}" for i in range(500)]
    texts = [" ".join(random.choices(vocabulary, k=12)) for _ in range(rows)]
    start = time.process_time()
    assert not list(near_duplicates([Item(str(i), "task", text) for i, text in enumerate(texts)], 0.8))
    pairs = [(str(i), text) for i, text in enumerate(texts)]
    assert not list(contamination(pairs[2000:], pairs[:2000]))
    assert time.process_time() - start < 10
