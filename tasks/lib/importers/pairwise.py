"""Pairs of answers, each row one verdict.

pairs    {prompt | messages | conversations, chosen, rejected}: TRL, LLaMA-Factory, RewardBench, UltraFeedback
choices  {prompt, answer_a, answer_b, preference}, fields named alike but for a/b, 1/2 or left/right
hh       hh-rlhf: {chosen, rejected}, two transcripts with a common beginning
outputs  {input, output_1, output_2, label}: LLMBar, AlpacaEval, PandaLM; label 1 or 2, 0 is a tie
verdicts MT-bench (arXiv 2306.05685), a judge's verdict in both orders of the answers
arena    {conversation_a, conversation_b, winner}: MT-bench by people, Chatbot Arena
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.lib.importers.rankings import Dropped, Judgement, Messages, messages_of, prompt_of
from tasks.lib.importers.ratings import number, ranks_of
from tasks.lib.importers.two_answers import of_word, two_answers
from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
WINNERS = {"model_a": [0, 1], "model_b": [1, 0], "tie": [0, 0]}  # also `tie (bothbad)`
ASKED = ("prompt", "instruction", "question")
VERDICTS = ("preference", "preferred", "better", "winner", "choice", "label", "verdict")  # of `choices`
DIFFER = "prompts_differ", "the two answers belong to different dialogues"


def transcripts(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    """hh-rlhf; the prompt is what both transcripts share before the last answer."""
    for line, row in rows:
        where = f"{path}:{line}"
        chosen, rejected = (_turns(f"{where}:{name}", row[name]) for name in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            yield Dropped(where, *DIFFER)
        elif chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant" or len(chosen) < 2:
            yield Dropped(where, "no_answer", "the transcript does not end with an answer to somebody")
        else:
            answers = [chosen[-1]["content"], rejected[-1]["content"]]
            yield _judged(path, where, chosen[:-1], answers, [0, 1], row)


def _turns(where: str, text: Any) -> Messages:
    parts = re.split(r"\n\n(Human|Assistant):", text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise Problem(f"{where}: expected a transcript of Human: and Assistant:, found {str(text)[:60]!r}")
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def pairs(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    """Answers as text, as a message or as a whole dialogue. Equal scores of the two make them a tie."""
    for line, row in rows:
        where = f"{path}:{line}"
        prompt = None
        if said := {name: row[name] for name in ASKED if row.get(name)}:
            said |= {name: row[name] for name in ("input", "system") if row.get(name)}
            prompt = prompt_of(where, said)  # `messages` beside them holds the chosen dialogue
        elif row.get("messages") or row.get("conversations"):
            prompt = prompt_of(where, row)
        (before, chosen), (before_too, rejected) = (
            _answer(f"{where}:{name}", row[name], prompt) for name in ("chosen", "rejected")
        )
        if before != before_too:
            yield Dropped(where, *DIFFER)
            continue
        ranks = [0, 1]
        for a, b in (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")):
            if row.get(a) is not None and row.get(b) is not None:
                ranks = ranks_of([number(f"{where}:{name}", row[name]) for name in (a, b)])
        if ranks == [1, 0]:
            yield Dropped(where, "scores_differ", "the rejected answer has the higher score")
        else:
            yield _judged(path, where, before, [chosen, rejected], ranks, row)


def _answer(where: str, value: Any, prompt: Messages | None) -> tuple[Messages, str]:
    """(the dialogue before it, the answer)."""
    if isinstance(value, str) and prompt:
        return prompt, value
    turns = [value] if isinstance(value, dict) else value
    dialogue = messages_of(where, turns) if isinstance(turns, list) else []
    if not dialogue or dialogue[-1]["role"] != "assistant" or not (prompt or dialogue[:-1]):
        raise Problem(f"{where}: expected an answer as text or as a message, found {str(value)[:60]!r}")
    before, prompt = dialogue[:-1], prompt or []
    return (before if before[: len(prompt)] == prompt else prompt + before), dialogue[-1]["content"]


def outputs(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for line, row in rows:
        where = f"{path}:{line}"
        name = "label" if "label" in row else "preference"
        value = number(f"{where}:{name}", row[name])
        if value not in (0, 1, 2):
            raise Problem(f"{where}:{name}: expected 1, 2 or 0 (a tie), found {str(row[name])[:60]!r}")
        answers = [row["output_1"], row["output_2"]]
        if not all(isinstance(answer, str) for answer in answers):
            raise Problem(f"{where}: expected output_1 and output_2 as text")
        ranks = {0: [0, 0], 1: [0, 1], 2: [1, 0]}[int(value)]
        yield _judged(path, where, prompt_of(where, row), answers, ranks, row)


def choices(path: Path, rows: Rows) -> Iterator[Judgement]:
    """A word or number that names the better of two fields, or a `preference_strength` of -3 to 3 (HelpSteer2:
    below 0 is the first)."""
    for line, row in rows:
        where = f"{path}:{line}"
        answers = two_answers(where, row)
        strength = None
        if row.get("preference_strength") not in (None, ""):
            value = number(f"{where}:preference_strength", row["preference_strength"])
            ranks = ranks_of([-value, value])
            strength = min(abs(value) / 3, 1.0)
        else:
            name = next(name for name in VERDICTS if name in row)
            named = of_word(str(row[name]), row)
            if named is None:
                raise Problem(f"{where}:{name}: expected a side or a tie, found {str(row[name])[:60]!r}")
            ranks = named
        yield _judged(path, where, prompt_of(where, row), answers, ranks, row, strength)


def verdicts(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    """A verdict counts only if it holds in both orders; what the judge saw is in its prompt."""
    for line, row in rows:
        where = f"{path}:{line}"
        first, second = row["g1_winner"], row["g2_winner"]
        if not {first, second} <= {"model_1", "model_2", "tie", "error"}:
            raise Problem(f"{where}: expected winners model_1, model_2, tie or error, found {first}, {second}")
        if "error" in (first, second):
            yield Dropped(where, "no_verdict", "the judge failed in one order")
        elif first != second:
            yield Dropped(where, "order_flip", f"{first}, and {second} when the answers changed places")
        elif row.get("turn", 1) != 1:  # the second turn answers first answers that differ
            yield Dropped(where, *DIFFER)
        else:
            question, answers = _shown(f"{where}:g1_user_prompt", row.get("g1_user_prompt"))
            ranks = {"model_1": [0, 1], "model_2": [1, 0], "tie": [0, 0]}[first]
            yield _judged(path, where, [{"role": "user", "content": question}], answers, ranks, row)


def _shown(where: str, prompt: Any) -> tuple[str, list[str]]:
    """(question, answers A and B) from the text that an MT-bench judge was given."""
    marks = [("[User Question]", "\n[The Start of ")]
    marks += [(f"[The Start of Assistant {x}'s Answer]", f"[The End of Assistant {x}'s Answer]") for x in "AB"]
    found = [re.search(rf"(?s){re.escape(start)}\n(.*?)\n{re.escape(end)}", str(prompt)) for start, end in marks]
    if not all(found):
        raise Problem(f"{where}: expected a question and the answers of Assistant A and B (one turn)")
    question, *answers = (match[1] for match in found if match)
    return question, answers


def arena(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for line, row in rows:
        where = f"{path}:{line}"
        winner = str(row["winner"]).lower()
        side = next((ranks for word, ranks in WINNERS.items() if winner.startswith(word)), None)
        if side is None:
            raise Problem(f"{where}:winner: expected model_a, model_b or tie, found {winner[:60]!r}")
        a, b = (messages_of(f"{where}:{name}", row[name]) for name in ("conversation_a", "conversation_b"))
        if isinstance(row.get("turn"), int):  # MT-bench has two turns; the verdict is on this one
            a, b = a[: 2 * row["turn"]], b[: 2 * row["turn"]]
        if a[:-1] != b[:-1]:
            yield Dropped(where, *DIFFER)
        elif not a or a[-1]["role"] != "assistant" or b[-1]["role"] != "assistant":
            yield Dropped(where, "no_answer", "the conversation does not end with an answer")
        else:
            yield _judged(path, where, a[:-1], [a[-1]["content"], b[-1]["content"]], side, row)


def _judged(
    path: Path,
    where: str,
    prompt: Messages,
    answers: list[str],
    ranks: list[int],
    row: Row,
    strength: float | None = None,
) -> Judgement:
    """The verdict of a row whose annotator and source, if it names none, are its file."""
    judge = row.get("annotator") or row.get("judge")
    if isinstance(judge, list):  # MT-bench: the model and its instructions
        judge = judge[0] if judge else None
    return Judgement(
        where,
        prompt,
        answers,
        ranks,
        str(judge or path.stem),
        str(row.get("source") or row.get("subset") or path.stem),
        row.get("license") or None,
        strength,
    )
