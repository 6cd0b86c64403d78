"""Answers that teach nothing (refusals, stock phrases, repetition), and the choice of the best rows."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tasks.lib.data.duplicates import Item, near_duplicates, runs_of, words_of

REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model)\b"
    r"|^\W*(?:i(?:'m| am) (?:very |so )?sorry|sorry|i apologi[sz]e|unfortunately)\b[^.!?]{0,40}"
    r"\b(?:can(?:not|'t)|(?:am|'m) (?:not able|unable)|won't)\b"
    r"|^\W*i (?:can(?:not|'t)|(?:am|'m) (?:not able|unable) to) (?:help|assist|answer|provide|fulfil|comply)\b",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?…:。！？])\s+|\n+")


def refusal(answer: str) -> str | None:
    """The words that refuse, or speak of being a model; None where the answer answers."""
    match = REFUSAL.search(answer.replace("’", "'"))
    if match is None:
        return None
    return match.group()


def stock_sentences(answers: Sequence[str], least: int) -> dict[int, str]:
    """Place of an answer -> its first or last sentence, if at least `least` different answers begin or end with it.

    "Sure, here is a list!" and "I hope this helps." say nothing about the question, in whatever language. A sentence
    that is the whole answer is none of them.
    """
    ends: list[list[tuple[str, str]]] = []  # of each answer: (first or last, the sentence)
    users: dict[tuple[str, str], set[str]] = defaultdict(set)  # such an end -> the answers that have it
    for answer in answers:
        sentences = SENTENCE_END.split(answer.strip())
        of_answer: list[tuple[str, str]] = []
        if len(sentences) > 1:
            of_answer = [("first", sentences[0]), ("last", sentences[-1])]
        ends.append(of_answer)
        for end in of_answer:
            users[end].add(answer)
    stock: dict[int, str] = {}
    for place, of_answer in enumerate(ends):
        for which, sentence in of_answer:
            if len(users[which, sentence]) >= least and place not in stock:
                stock[place] = sentence
    return stock


def repetition(text: str, size: int = 3) -> float:
    """The share of a text's runs of `size` words that its most frequent run makes up; 0 where none comes twice.

    After the top n-gram rule of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A), which counts characters.
    """
    words = words_of(text)
    if len(words) < size:
        return 0.0
    runs = Counter(runs_of(words, size))
    most = max(runs.values())
    if most == 1:
        return 0.0
    return most / runs.total()


def best(items: Sequence[Item], scores: Mapping[str, float], count: int, max_similarity: float) -> list[Item]:
    """The `count` items of the highest scores, none of which is too like a better one.

    A few good and different rows teach more than many (LIMA, arXiv 2305.11206; scores of a judge choose them in
    AlpaGasus, arXiv 2307.08701). Likeness is the Jaccard similarity of 3-word shingles. Equal scores: by id.
    """
    ordered = sorted(items, key=lambda item: (-scores[item.id], item.id))
    too_like = {i for i, _, _ in near_duplicates(ordered, max_similarity)}
    return [item for i, item in enumerate(ordered) if i not in too_like][:count]
