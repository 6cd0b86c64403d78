"""Rankings: what an importer yields, and the rules that turn it into rows to train on.

An importer yields a `Judgement` for each ranking that somebody made and a `Dropped` for each that is none.
`cleaned` then applies the rules that hold for every tool. What is dropped is told, with place and reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Any

from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import ROLES, content_id
from tasks.lib.stage import Problem

Row = dict[str, Any]
Messages = list[dict[str, str]]
PROMPTS = ("messages", "prompt", "conversations", "instruction", "question", "input")  # names of the prompt


@dataclass(frozen=True)
class Judgement:
    """One ranking by one annotator, as the export has it."""

    where: str  # file and row
    prompt: Messages
    answers: list[str]
    ranks: list[int]  # 0 best, equal = tie, gaps allowed
    annotator: str
    source: str
    license: str | None = None
    strength: float | None = None  # how clear the preference is, 0 to 1
    order: tuple[str, int] = ("", 0)  # time and number: the annotator's later word counts


@dataclass(frozen=True)
class Dropped:
    """Something of an export that is no ranking, or not one to train on."""

    where: str
    rule: str
    detail: str


def words(text: str) -> str:
    """Text with every run of white space as one space: what equal answers compare. Case counts."""
    return " ".join(text.split())


def prompt_of(where: str, row: Mapping[str, Any]) -> Messages:
    """The prompt of a row, text or messages, as messages, after its `system` text if it has one.

    Problem naming the field when there is no prompt.
    """
    name = next((name for name in PROMPTS if row.get(name)), "prompt")
    prompt = row.get(name)
    if name == "instruction" and isinstance(row.get("input"), str) and row["input"].strip():
        prompt = f"{prompt}\n\n{row['input']}"
    if isinstance(prompt, str) and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise Problem(f"{where}:{name}: expected text or messages, found {str(prompt)[:60]!r}; name the field `prompt`")
    messages = messages_of(f"{where}:{name}", prompt)
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def messages_of(where: str, turns: Sequence[Any]) -> Messages:
    """{role, content} messages of turns that may also say {from, value}."""
    found = []
    for turn in turns:
        fields = turn if isinstance(turn, dict) else {}
        role = ROLES.get(str(fields.get("role", fields.get("from"))))
        content = fields.get("content", fields.get("value"))
        if role is None or not isinstance(content, str):
            raise Problem(f"{where}: expected messages of role and content, found {str(turn)[:60]!r}")
        found.append({"role": role, "content": content})
    return found


def is_heldout(prompt: Messages, share: float) -> bool:
    """True for `share` of all prompts, by hash: a prompt never stands in two splits and never moves."""
    return int(prompt_key(prompt)[:8], 16) / 2**32 < share


def cleaned(found: Iterable[Judgement | Dropped], license: str) -> tuple[list[Row], list[Dropped], Counter[str]]:
    """Rows of the ranking schema (by prompt and annotator), what was dropped, and counts of what was met.

    1. Answers that are empty, or equal to a better one up to white space, leave their ranking; a ranking of
       fewer than two answers is dropped.
    2. Gaps in ranks are closed.
    3. Of an annotator's rankings of the same answers the last counts; the same export again adds nothing.
    4. An annotator whose rankings of one prompt form a cycle is not heard on it.
    """
    dropped, counts = [], Counter[str]()
    latest: dict[tuple[str, str, tuple[str, ...]], Judgement] = {}
    for item in found:
        kept = _distinct(item, counts) if isinstance(item, Judgement) else item
        if isinstance(kept, Dropped):
            dropped.append(kept)
            continue
        key = prompt_key(kept.prompt), kept.annotator, tuple(sorted(map(words, kept.answers)))
        if earlier := latest.get(key):
            kept, outdated = sorted((kept, earlier), key=lambda j: j.order, reverse=True)
            if (kept.order, _order_of(kept)) == (outdated.order, _order_of(outdated)):
                kept, outdated = earlier, kept  # the row stays what it was before the later export came
                dropped.append(Dropped(outdated.where, "repeated", f"{kept.where} says the same"))
            else:
                counts["changed_minds"] += _order_of(kept) != _order_of(outdated)
                dropped.append(Dropped(outdated.where, "annotator_twice", f"{kept.where} is later"))
        latest[key] = kept
    rows = []
    for (prompt, annotator), judgements in _by_prompt_and_annotator(latest).items():
        if _has_cycle(judgements):
            dropped += [Dropped(j.where, "cycle", f"{annotator} contradicts himself on {prompt}") for j in judgements]
        else:
            rows += [_row(j, license) for j in judgements]
    for row in rows:
        counts["tied_pairs"] += sum(a == b for a, b in combinations(row["ranks"], 2))
    return rows, dropped, counts


def _distinct(item: Judgement, counts: Counter[str]) -> Judgement | Dropped:
    """Rule 1 and 2: answers that say something, each once, with dense ranks."""
    best: dict[str, tuple[int, str]] = {}
    why = "too_few_answers"
    for rank, answer in sorted(zip(item.ranks, item.answers, strict=True), key=lambda pair: pair[0]):
        text = words(answer)
        if not text or text in best:
            why = "equal_answers" if text else "empty_answer"
            counts[f"removed_{why}"] += 1
        else:
            best[text] = rank, answer
    if len(best) < 2:
        return Dropped(item.where, why, f"{len(best)} of {len(item.answers)} answers left")
    place = {rank: index for index, rank in enumerate(sorted({rank for rank, _ in best.values()}))}
    ranked = sorted(best.values(), key=lambda pair: item.answers.index(pair[1]))  # as shown, not as ranked
    return replace(item, answers=[answer for _, answer in ranked], ranks=[place[rank] for rank, _ in ranked])


def _order_of(judgement: Judgement) -> dict[str, int]:
    return {words(a): rank for a, rank in zip(judgement.answers, judgement.ranks, strict=True)}


def _by_prompt_and_annotator(
    latest: dict[tuple[str, str, tuple[str, ...]], Judgement],
) -> dict[tuple[str, str], list[Judgement]]:
    groups: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for key in sorted(latest):
        groups[key[:2]].append(latest[key])
    return groups


def _has_cycle(judgements: Sequence[Judgement]) -> bool:
    """True if the strict preferences of several rankings of one prompt cannot all hold."""
    if len(judgements) < 2:
        return False
    graph: dict[str, set[str]] = defaultdict(set)
    for judgement in judgements:
        ranked = [*_order_of(judgement).items()]
        for (a, rank_a), (b, rank_b) in combinations(ranked, 2):
            if rank_a != rank_b:
                worse, better = (b, a) if rank_a < rank_b else (a, b)
                graph[worse].add(better)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _row(item: Judgement, license: str) -> Row:
    return {
        "id": content_id(item.prompt, item.answers, item.ranks, item.annotator, item.source),
        "prompt": item.prompt,
        "answers": item.answers,
        "ranks": item.ranks,
        "annotator": item.annotator,
        "strength": item.strength,
        "source": item.source,
        "license": item.license or license,
    }
