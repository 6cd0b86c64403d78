"""Answers that teach nothing: refusals, talk about being a model, and text that repeats itself."""

from __future__ import annotations

import re
from collections import Counter

from tasks.lib.data.duplicates import words_of

REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model)\b"
    r"|^\W*(?:i(?:'m| am) (?:very |so )?sorry|sorry|i apologi[sz]e|unfortunately)\b[^.!?]{0,40}"
    r"\b(?:can(?:not|'t)|(?:am|'m) (?:not able|unable)|won't)\b"
    r"|^\W*i (?:can(?:not|'t)|(?:am|'m) (?:not able|unable) to) (?:help|assist|answer|provide|fulfil|comply)\b",
    re.IGNORECASE,
)


def refusal(answer: str) -> str | None:
    """The words that refuse, or speak of being a model; None where the answer answers."""
    found = REFUSAL.search(answer.replace("’", "'"))
    return found.group() if found else None


def repetition(text: str, size: int = 3) -> float:
    """The share of a text's runs of `size` words that its most frequent run makes up; 0 where none comes twice.

    After the top n-gram rule of Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A), which counts characters.
    """
    words = words_of(text)
    grams = Counter(zip(*(words[i:] for i in range(size)), strict=False))
    most = max(grams.values(), default=0)
    return most / grams.total() if most > 1 else 0.0
