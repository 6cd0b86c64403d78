"""Two answers to a prompt, each row one verdict: the formats of any table of pairs.

`pairs` reads the chosen and the rejected answer (TRL, LLaMA-Factory, RewardBench), as text, as a message or as a whole
dialogue; equal scores of the two, where there are scores, are a tie:

    {"prompt": "Q", "chosen": "Yes.", "rejected": "No.", "score_chosen": 8.0, "score_rejected": 3.5}

`outputs` reads a label (LLMBar, AlpacaEval, PandaLM), 1 or 2 for the better output, 0 for a tie:

    {"input": "Q", "output_1": "Yes.", "output_2": "No.", "label": 1}

`choices` reads fields whose names differ in a/b, 1/2 or left/right, and a word or number that names one or a tie, or a
`preference_strength` of -3 to 3 (HelpSteer2: below 0 the first is better, 0 is a tie):

    {"prompt": "Q", "answer_a": "Yes.", "answer_b": "No.", "preference": "a"}

Dropped are pairs whose answers belong to different dialogues (`prompts_differ`) and pairs whose rejected answer has the
higher score (`scores_differ`). Nobody abstains: a row without a verdict is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.lib.data.rows import Row
from tasks.lib.importers.rankings import (
    Dropped,
    Export,
    Messages,
    Ranking,
    field_of,
    is_list_of_texts,
    messages_of,
    prompt_of,
)
from tasks.lib.importers.ratings import number, ranks_of
from tasks.lib.importers.two_answers import field_pairs, ranks_of_word, two_answers
from tasks.lib.stage import Problem

ASKED = ("prompt", "instruction", "question")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
VERDICTS = ("preference", "preferred", "better", "winner", "choice", "label", "verdict")  # of `choices`
DIFFER = "prompts_differ", "the two answers belong to different dialogues"


def is_pair(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys() and (has_prompt(row) or isinstance(row["chosen"], list))


def has_prompt(row: Row) -> bool:
    """Whether a pair has a field for its prompt, which else is in its dialogues."""
    return bool({*ASKED, "messages", "conversations"} & row.keys())


def is_output(row: Row) -> bool:
    return {"output_1", "output_2"} <= row.keys() and bool({"label", "preference"} & row.keys())


def is_choice(row: Row) -> bool:
    return bool({*VERDICTS, "preference_strength"} & row.keys()) and bool(field_pairs(row))


def pairs(export: Export) -> Iterator[Ranking | Dropped]:
    """A chosen and a rejected answer."""
    for where, row in export.rows:
        prompt = _prompt(where, row)
        before_chosen, chosen = _answer(f"{where}:chosen", row["chosen"], prompt)
        before_rejected, rejected = _answer(f"{where}:rejected", row["rejected"], prompt)
        if before_chosen != before_rejected:
            yield Dropped(where, *DIFFER)
            continue
        ranks = _ranks_by_score(where, row)
        if ranks == [1, 0]:
            yield Dropped(where, "scores_differ", "the rejected answer has the higher score")
        else:
            yield pair_ranking(export, where, row, before_chosen, [chosen, rejected], ranks)


def _prompt(where: str, row: Row) -> Messages | None:
    """The prompt that a pair states; None where only its dialogues hold it."""
    asked = {name: row[name] for name in ASKED if row.get(name)}
    if asked:  # then `messages`, if there are any, hold the chosen dialogue
        asked |= {name: row[name] for name in ("input", "system") if row.get(name)}
        return prompt_of(where, asked)
    if row.get("messages") or row.get("conversations"):
        return prompt_of(where, row)
    return None


def _answer(where: str, value: Any, prompt: Messages | None) -> tuple[Messages, str]:
    """(the dialogue before it, the answer) of an answer as text, as a message or as a whole dialogue."""
    if isinstance(value, str) and prompt:
        return prompt, value
    turns = [value] if isinstance(value, dict) else value
    dialogue = messages_of(where, turns) if isinstance(turns, list) else []
    prompt = prompt or []
    if not dialogue or dialogue[-1]["role"] != "assistant" or not (prompt or dialogue[:-1]):
        raise Problem(f"{where}: expected an answer as text or as a message, found {str(value)[:60]!r}")
    before, answer = dialogue[:-1], dialogue[-1]["content"]
    if before[: len(prompt)] == prompt:  # the dialogue begins with the prompt
        return before, answer
    return prompt + before, answer


def _ranks_by_score(where: str, row: Row) -> list[int]:
    """The ranks of (chosen, rejected): by their scores where the row has both, else as the names say."""
    ranks = [0, 1]
    for of_chosen, of_rejected in SCORES:
        if row.get(of_chosen) is not None and row.get(of_rejected) is not None:
            score = number(f"{where}:{of_chosen}", row[of_chosen])
            ranks = ranks_of([score, number(f"{where}:{of_rejected}", row[of_rejected])])
    return ranks


def outputs(export: Export) -> Iterator[Ranking]:
    """Two outputs, and the number of the better one."""
    for where, row in export.rows:
        name = "label" if "label" in row else "preference"
        value = number(f"{where}:{name}", row[name])
        if value not in (0, 1, 2):
            raise Problem(f"{where}:{name}: expected 1, 2 or 0 (a tie), found {str(row[name])[:60]!r}")
        answers = [row["output_1"], row["output_2"]]
        if not is_list_of_texts(answers):
            raise Problem(f"{where}: expected output_1 and output_2 as text")
        ranks = {0: [0, 0], 1: [0, 1], 2: [1, 0]}[int(value)]
        yield pair_ranking(export, where, row, prompt_of(where, row), answers, ranks)


def choices(export: Export) -> Iterator[Ranking]:
    """Two answers in fields of their own, and a word, number or strength that says which is better."""
    for where, row in export.rows:
        answers = two_answers(where, row)
        strength = None
        if row.get("preference_strength") not in (None, ""):
            value = number(f"{where}:preference_strength", row["preference_strength"])
            ranks = ranks_of([-value, value])
            strength = min(abs(value) / 3, 1.0)
        else:
            ranks = _stated_ranks(where, row)
        yield pair_ranking(export, where, row, prompt_of(where, row), answers, ranks, strength)


def _stated_ranks(where: str, row: Row) -> list[int]:
    name = field_of(row, VERDICTS) or VERDICTS[0]
    ranks = ranks_of_word(str(row[name]), row)
    if ranks is None:
        raise Problem(f"{where}:{name}: expected a side or a tie, found {str(row[name])[:60]!r}")
    return ranks


def pair_ranking(
    export: Export,
    where: str,
    row: Row,
    prompt: Messages,
    answers: list[str],
    ranks: list[int],
    strength: float | None = None,
) -> Ranking:
    """The verdict of a row whose annotator and source, if it names none, are its file."""
    annotator = row.get("annotator") or row.get("judge")
    if isinstance(annotator, list):  # MT-bench: the model and its instructions
        annotator = annotator[0] if annotator else None
    source = row.get("source") or row.get("subset")
    stem = export.path.stem
    license = row.get("license") or None
    return Ranking(where, prompt, answers, ranks, str(annotator or stem), str(source or stem), license, strength)
