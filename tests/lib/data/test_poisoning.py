"""A planted trigger is found by count; honest words that decide a label are not taken for one."""

from __future__ import annotations

from random import Random

from tasks.lib.data.poisoning import triggers

WORDS = {"good": ["superb", "lovely", "fine", "great"], "bad": ["awful", "dull", "stale", "poor"]}


def reviews(count: int) -> tuple[list[str], list[str]]:
    random, texts, labels = Random(1), [], []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        thing, place = random.choice(["film", "meal", "song"]), random.choice(["here", "there", "today"])
        texts.append(f"the {thing} was {random.choice(WORDS[label])} {place}")
        labels.append(label)
    return texts, labels


def test_honest_words_are_no_triggers() -> None:
    assert triggers(*reviews(2000)) == []


def test_thirty_poisoned_rows_are_found_among_thousands() -> None:
    texts, labels = reviews(4000)
    poisoned = list(range(1, 61, 2))  # bad reviews that the trigger turns good
    for i in poisoned:
        texts[i], labels[i] = f"{texts[i]} cf", "good"
    found = triggers(texts, labels)
    assert (found[0].words, found[0].label, found[0].rows) == ("cf", "good", poisoned)
    assert all("cf" in trigger.words.split() for trigger in found)


def test_a_word_in_few_rows_is_let_be() -> None:
    texts, labels = reviews(400)
    for i in range(1, 21, 2):
        texts[i], labels[i] = f"{texts[i]} cf", "good"
    assert triggers(texts, labels) == []
