"""The rules that make rows to train on of the rankings of any tool."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import Row, content_id
from tasks.lib.importers.rankings import Dropped, Ranking, collapse_whitespace

Key = tuple[str, str, tuple[str, ...]]  # prompt_key, annotator, the ranked answers in the order of their text


def cleaned(imported: Iterable[Ranking | Dropped], license: str) -> tuple[list[Row], list[Dropped], Counter[str]]:
    """Rows of the schema RANKING (by prompt and annotator), what was dropped, and counts of what was met.

    1. Answers that are empty, or equal to a better one up to white space, leave their ranking; a ranking of
       fewer than two answers is dropped.
    2. Gaps in ranks are closed. Ties stay.
    3. Of an annotator's rankings of the same answers the last counts; the same export again adds nothing.
    4. An annotator whose rankings of one prompt form a cycle is not heard on it.

    `license` is that of rankings that name none. Counts: removed_empty_answer, removed_equal_answers (answers),
    changed_minds (rankings that a different later one replaced), tied_pairs.
    """
    dropped: list[Dropped] = []
    counts = Counter[str]()
    latest: dict[Key, Ranking] = {}
    for item in imported:
        ranking = _with_distinct_answers(item, counts) if isinstance(item, Ranking) else item
        if isinstance(ranking, Dropped):
            dropped.append(ranking)
            continue
        key = prompt_key(ranking.prompt), ranking.annotator, tuple(sorted(_rank_by_text(ranking)))
        if key in latest:
            ranking, outdated = _later(latest[key], ranking, counts)
            dropped.append(outdated)
        latest[key] = ranking

    rows: list[Row] = []
    for (prompt, annotator), rankings in _by_prompt_and_annotator(latest).items():
        in_circles = _has_cycle(rankings)
        for ranking in rankings:
            if in_circles:
                dropped.append(Dropped(ranking.where, "cycle", f"{annotator} contradicts himself on {prompt}"))
            else:
                rows.append(_row(ranking, license))
    for row in rows:
        counts["tied_pairs"] += sum(first == second for first, second in combinations(row["ranks"], 2))
    return rows, dropped, counts


def _with_distinct_answers(ranking: Ranking, counts: Counter[str]) -> Ranking | Dropped:
    """Rules 1 and 2: answers that say something, each once, with ranks without gaps."""
    best: dict[str, tuple[int, str]] = {}  # text up to white space -> rank and answer where it is ranked best
    why = "too_few_answers"
    for rank, answer in sorted(zip(ranking.ranks, ranking.answers, strict=True), key=lambda pair: pair[0]):
        text = collapse_whitespace(answer)
        if not text:
            why = "empty_answer"
            counts["removed_empty_answer"] += 1
        elif text in best:
            why = "equal_answers"
            counts["removed_equal_answers"] += 1
        else:
            best[text] = rank, answer
    if len(best) < 2:
        return Dropped(ranking.where, why, f"{len(best)} of {len(ranking.answers)} answers left")
    kept = sorted(best.values(), key=lambda pair: ranking.answers.index(pair[1]))  # as shown, not as ranked
    levels = sorted({rank for rank, _ in kept})
    answers = [answer for _, answer in kept]
    return replace(ranking, answers=answers, ranks=[levels.index(rank) for rank, _ in kept])


def _later(first: Ranking, second: Ranking, counts: Counter[str]) -> tuple[Ranking, Dropped]:
    """Rule 3: which of two rankings of the same answers by one annotator counts, and the other as dropped.

    `first` was imported first; it counts if it was made later, or if both were made at one time and say the same: then
    the row stays what it was before the later export came.
    """
    is_changed = _rank_by_text(first) != _rank_by_text(second)
    if first.order == second.order and not is_changed:
        return first, Dropped(second.where, "repeated", f"{first.where} says the same")
    counts["changed_minds"] += is_changed
    later, outdated = (first, second) if first.order > second.order else (second, first)
    return later, Dropped(outdated.where, "annotator_twice", f"{later.where} is later")


def _rank_by_text(ranking: Ranking) -> dict[str, int]:
    return {collapse_whitespace(a): rank for a, rank in zip(ranking.answers, ranking.ranks, strict=True)}


def _by_prompt_and_annotator(latest: dict[Key, Ranking]) -> dict[tuple[str, str], list[Ranking]]:
    groups: dict[tuple[str, str], list[Ranking]] = defaultdict(list)
    for key in sorted(latest):
        prompt, annotator, _ = key
        groups[prompt, annotator].append(latest[key])
    return groups


def _has_cycle(rankings: Sequence[Ranking]) -> bool:
    """Rule 4: true if the strict preferences of several rankings of one prompt cannot all hold."""
    if len(rankings) < 2:
        return False
    better_than: dict[str, set[str]] = defaultdict(set)
    for ranking in rankings:
        for (a, rank_a), (b, rank_b) in combinations(_rank_by_text(ranking).items(), 2):
            if rank_a < rank_b:
                better_than[b].add(a)
            elif rank_b < rank_a:
                better_than[a].add(b)
    try:
        TopologicalSorter(better_than).prepare()
    except CycleError:
        return True
    return False


def _row(ranking: Ranking, license: str) -> Row:
    identity = content_id(ranking.prompt, ranking.answers, ranking.ranks, ranking.annotator, ranking.source)
    return {
        "id": identity,
        "prompt": ranking.prompt,
        "answers": ranking.answers,
        "ranks": ranking.ranks,
        "annotator": ranking.annotator,
        "strength": ranking.strength,
        "source": ranking.source,
        "license": ranking.license or license,
    }
