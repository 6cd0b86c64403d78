"""Measures: how right an answer is, from 0 (wrong) to 1 (right), as the `measure` of its task in source.yaml says.

`exact` compares texts. `normalised` and `token_f1` are those of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250,
section 6.1), `number` reads answers as GSM8K writes them (Cobbe et al. 2021, arXiv 2110.14168), `rouge_l` is the F1 of
the longest common subsequence (Lin 2004, "ROUGE", section 3).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Container, Sequence
from decimal import Decimal

from tasks.lib.data.time_limit import TooMuch, time_limit
from tasks.lib.stage import Problem

REGEX = "regex:"  # what the measure of a row begins with where its task has {regex: PATTERN}
NUMBER = re.compile(r"(?:(?<![\w)])-)?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+")
WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+")
ARTICLE = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(measure: str, label: str, answer: str, choices: Sequence[str] | None = None) -> float:
    """How right an answer is by a measure: a name of MEASURES (sources.py), or `regex:` and a pattern.

    `choices` are those of the row, which the measure `choice` needs. Where the label itself gives a measure nothing to
    compare, every answer scores 0. Problem for an unknown measure, for a pattern that takes seconds, and where a
    library is missing.
    """
    match measure:
        case "exact":
            return float(answer.strip() == label.strip())
        case "normalised":
            return float(normalised(answer) == normalised(label))
        case "number":
            return float(number(label) is not None and number(answer) == number(label))
        case "contains":
            wanted = " ".join(words(label))
            return float(bool(wanted) and f" {wanted} " in f" {' '.join(words(answer))} ")
        case "choice":
            return float(choices is not None and named_choice(answer, choices) == " ".join(words(label)))
        case "token_f1":
            return token_f1(label, answer)
        case "rouge_l":
            return rouge_l(label, answer)
    if measure.startswith(REGEX):
        return matches(measure.removeprefix(REGEX), label, answer)
    raise Problem(f"the measure {measure!r} of a row is not known; run render again, or correct the row")


def content_metric(figures: Container[str], stem: str = "") -> str:
    """Which of the figures `<stem>...` says how right answers are: `score` where it is there, else `exact_match`."""
    return "score" if f"{stem}score" in figures else "exact_match"


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, single blanks: what SQuAD compares."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """The words and numbers of a text in order, without case and punctuation; 1,000.5 is one of them."""
    return WORD.findall(text.casefold())


def number(text: str) -> Decimal | None:
    """The first number after `####` where that is there, else the last number; commas and $ aside. None: no number."""
    _, mark, after = text.partition("####")
    found = NUMBER.findall(after if mark else text)
    if not found:
        return None
    return Decimal((found[0] if mark else found[-1]).replace(",", "").replace("$", ""))


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that an answer begins with, else the only one that occurs in it, as words; None: none or several.

    Of choices that contain each other the longest counts, so `not good` does not name `good`.
    """
    names = sorted({" ".join(words(choice)) for choice in choices}, key=len, reverse=True)
    pattern = "|".join(re.escape(name) for name in names if name)
    found = list(re.finditer(rf"(?<!\S)(?:{pattern})(?!\S)", " ".join(words(answer)))) if pattern else []
    if found and (found[0].start() == 0 or len({each[0] for each in found}) == 1):
        return found[0][0]
    return None


def token_f1(label: str, answer: str) -> float:
    """F1 of the normalised words of both as bags; without words on one side, whether both have none."""
    wanted, given = normalised(label).split(), normalised(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    return 2 * (Counter(wanted) & Counter(given)).total() / (len(wanted) + len(given))


def rouge_l(label: str, answer: str) -> float:
    """F1 of the longest common subsequence of words, without stemming; 0 where one side has no words."""
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError:
        raise Problem("the measure rouge_l needs the package rapidfuzz: pip install -e '.[rouge]'") from None
    wanted, given = words(label), words(answer)
    if not wanted or not given:
        return 0.0
    return 2 * LCSseq.similarity(wanted, given) / (len(wanted) + len(given))


def matches(pattern: str, label: str, answer: str) -> float:
    """1 where the pattern is found in the answer, else 0; its group named `label` must then be the label."""
    try:
        with time_limit():
            found = re.search(pattern, answer)
    except TooMuch as error:
        raise Problem(f"the regular expression {pattern!r} {error} on one answer; make it simpler") from None
    if found is None or "label" not in found.groupdict():
        return float(found is not None)
    return float((found["label"] or "").strip() == label.strip())
