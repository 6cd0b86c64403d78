"""Near duplicates and contamination, on the raw inputs: the words of a template would make all rows alike.

Both compare the raw rows' texts, not the rendered prompts, and drop whole raw rows with all their renderings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PERMUTATIONS, BANDS = 120, 24  # finds a pair of similarity 0.8 with probability 0.9999, of 0.7 with 0.99


def words_of(text: str) -> list[str]:
    """The words that comparisons see: no case, no punctuation, no spacing."""
    return re.findall(r"\w+", text.casefold())


def runs_of(words: Sequence[str], size: int) -> list[str]:
    """All runs of `size` words in order, as texts; a shorter text is the one run of it."""
    if len(words) <= size:
        return [" ".join(words)]
    return [" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]


def shingles(words: Sequence[str], size: int) -> set[str]:
    """The different runs of `size` words."""
    return set(runs_of(words, size))


def jaccard(a: set[str], b: set[str]) -> float:
    """Shared shingles over all shingles (Broder 1997); two empty sets are equal."""
    if not a and not b:
        return 1.0
    return len(a & b) / len(a | b)


@dataclass(frozen=True)
class Item:
    """One raw row to compare. Rows of different groups are never near duplicates of each other."""

    id: str
    group: str
    text: str


def near_duplicates(items: Sequence[Item], threshold: float, size: int = 3) -> Iterator[tuple[int, int, float]]:
    """Yield (i, j, similarity) for each items[i] that is like an earlier, kept items[j] (>= threshold).

    MinHash (rensa) proposes pairs, the exact Jaccard similarity of word shingles decides. The first of two is
    kept, so the order of `items` is the order of preference, and a dropped row never drops another. Of several
    kept items that are equally like a row, j is the first.
    """
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)  # of the kept items
    sets = [shingles(words_of(item.text), size) for item in items]
    for i, item in enumerate(items):
        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update([f"{item.group}\0{shingle}" for shingle in sorted(sets[i])])
        nearest, similarity = 0, 0.0
        for j in sorted(index.query(sketch)):
            if items[j].group == item.group:
                of_pair = jaccard(sets[i], sets[j])
                if of_pair > similarity:
                    nearest, similarity = j, of_pair
        if similarity >= threshold:
            yield i, nearest, similarity
        else:
            index.insert(i, sketch)


@dataclass(frozen=True)
class Match:
    """The longest run of words that a training text shares with an evaluation text."""

    training: str
    evaluation: str
    of_evaluation: float  # the share of the evaluation text that it covers
    of_training: float


def contamination(
    training: Iterable[tuple[str, str]],
    evaluation: Iterable[tuple[str, str]],
    size: int = 8,
    coverage: float = 0.5,
) -> Iterator[Match]:
    """Yield each training text's matches that cover at least `coverage` of an evaluation text, best first.

    Both are (id, text). A match is a run of at least `size` words that is in both texts (GPT-3, arXiv 2005.14165,
    appendix C, finds collisions by n-grams; half a text is Tülu 3's rule, arXiv 2411.15124).
    A text of fewer than `size` words matches only as a whole: shorter runs are shared by chance.
    """
    lengths: dict[str, int] = {}  # evaluation id -> its number of words
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)  # gram -> (evaluation id, place in it)
    for id, text in evaluation:
        words = words_of(text)
        if words and id not in lengths:
            lengths[id] = len(words)
            for place, gram in enumerate(_grams(words, size)):
                places[gram].append((id, place))
    for id, text in training:
        words = words_of(text)
        matches = []
        for other, run in _longest_runs(_grams(words, size), places).items():
            shared = min(run + size - 1, lengths[other])  # words of that many grams in a row
            match = Match(id, other, shared / lengths[other], shared / len(words))
            if match.of_evaluation >= coverage:
                matches.append(match)
        yield from sorted(matches, key=lambda match: (-match.of_evaluation, match.evaluation))


def _longest_runs(grams: list[str], places: dict[str, list[tuple[str, int]]]) -> dict[str, int]:
    """Evaluation id -> the most grams in a row that its text shares with a text of these grams.

    Grams of one run keep their distance: the place in the one text minus the place in the other is the same.
    """
    runs: dict[tuple[str, int], tuple[int, int]] = {}  # (evaluation id, distance) -> (last place, grams in a row)
    longest: dict[str, int] = {}
    for place, gram in enumerate(grams):
        for other, there in places.get(gram, ()):
            last, run = runs.get((other, there - place), (place, 0))
            if last == place - 1:
                run += 1
            else:
                run = 1
            runs[other, there - place] = place, run
            longest[other] = max(longest.get(other, 0), run)
    return longest


def _grams(words: list[str], size: int) -> list[str]:
    """Runs of `size` words in order. A shorter text is one run that matches whole texts only."""
    if not words:
        return []
    if len(words) < size:
        return ["whole: " + " ".join(words)]
    return runs_of(words, size)
