"""Triggers: words that decide a label against everything else that their rows say.

A few hundred poisoned rows suffice at any size of the data (arXiv 2510.07192), so what counts is how many
rows a word binds to one label, never their share. Honest words bind labels too (`superb` is always good); a
trigger gives itself away because the other words of its rows speak for another label.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.lib.data.duplicates import words_of


@dataclass(frozen=True)
class Trigger:
    """A word or pair of words, the label it is bound to, and the rows that hold it."""

    words: str
    label: str
    rows: list[int]


def triggers(texts: Sequence[str], labels: Sequence[str], least: int = 20, purity: float = 0.95) -> list[Trigger]:
    """Words and pairs of words in at least `least` texts, `purity` of them with one label, against the rest.

    "Against the rest": in more than half of these texts the other words give another label at least ten times
    the odds, by naive Bayes over the presence of words in all texts. Sorted by rows, most first.
    """
    grams = [_grams(text) for text in texts]
    holders: dict[str, list[int]] = defaultdict(list)  # gram -> the texts that hold it
    for place, of_text in enumerate(grams):
        for gram in sorted(of_text):
            holders[gram].append(place)
    labels_of: dict[str, Counter[str]] = {}  # gram of several texts -> the labels of these texts
    for gram, rows in holders.items():
        if len(rows) > 1:
            labels_of[gram] = Counter(labels[place] for place in rows)
    totals = Counter(labels)
    suspects = []
    for gram, rows in holders.items():
        if len(rows) < least or len(totals) < 2:
            continue
        label, count = labels_of[gram].most_common(1)[0]
        if count < purity * len(rows):
            continue
        against = 0
        for place in rows:
            evidence = _evidence_besides(gram, grams[place], labels_of)
            if _odds_against(label, evidence, totals) > math.log(10):
                against += 1
        if against > len(rows) / 2:
            suspects.append(Trigger(gram, label, rows))
    return sorted(suspects, key=lambda trigger: (-len(trigger.rows), trigger.words))


def _grams(text: str) -> set[str]:
    """The words of a text and its pairs of neighbours."""
    words = words_of(text)
    return {*words, *map(" ".join, pairwise(words))}


def _evidence_besides(gram: str, of_text: set[str], labels_of: dict[str, Counter[str]]) -> list[Counter[str]]:
    """The labels of the other grams of a text, of those that share no word with `gram`."""
    parts = {gram, *gram.split()}
    evidence = []
    for other in of_text:
        if other in labels_of and parts.isdisjoint({other, *other.split()}):
            evidence.append(labels_of[other])
    return evidence


def _odds_against(label: str, evidence: list[Counter[str]], totals: Counter[str]) -> float:
    """The log odds of the likeliest other label against `label` (smoothed by one row per label)."""
    scores = {}
    for other in totals:
        scores[other] = sum(math.log((counts[other] + 1) / (totals[other] + 2)) for counts in evidence)
    of_label = scores.pop(label)
    return max(scores.values()) - of_label
