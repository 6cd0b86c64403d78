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
    holders: dict[str, list[int]] = defaultdict(list)
    for i, found in enumerate(grams):
        for gram in sorted(found):
            holders[gram].append(i)
    totals = Counter(labels)
    by_label = {gram: Counter(labels[i] for i in rows) for gram, rows in holders.items() if len(rows) > 1}
    suspects = []
    for gram, rows in holders.items():
        if len(rows) < least:
            continue
        label, count = by_label[gram].most_common(1)[0]
        if count < purity * len(rows) or len(totals) < 2:
            continue
        parts = {gram, *gram.split()}
        against = 0
        for i in rows:
            others = [by_label[g] for g in grams[i] if g in by_label and parts.isdisjoint({g, *g.split()})]
            against += _odds_against(label, others, totals) > math.log(10)
        if against > len(rows) / 2:
            suspects.append(Trigger(gram, label, rows))
    return sorted(suspects, key=lambda trigger: (-len(trigger.rows), trigger.words))


def _grams(text: str) -> set[str]:
    words = words_of(text)
    return {*words, *map(" ".join, pairwise(words))}


def _odds_against(label: str, evidence: list[Counter[str]], totals: Counter[str]) -> float:
    """The log odds of the likeliest other label against `label` (smoothed by one row per label)."""
    scores = {
        other: sum(math.log((counts[other] + 1) / (totals[other] + 2)) for counts in evidence) for other in totals
    }
    return max(score for other, score in scores.items() if other != label) - scores[label]
