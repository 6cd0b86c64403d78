"""MT-bench (arXiv 2306.05685) and Chatbot Arena: the answers of two models to one question.

`verdicts` reads the verdicts of a model on both orders of the answers; its prompt holds question and answers:

    {"g1_winner": "model_1", "g2_winner": "model_1", "judge": ["gpt-4", "pair-v2"], "turn": 1,
     "g1_user_prompt": "[User Question]\\n..."}

A verdict counts only if it holds in both orders (else `order_flip`); `tie` in both is a tie. Dropped, too, are verdicts
that failed (`no_verdict`) and those of a second turn, before which the answers differ already (`prompts_differ`).

`arena` reads two conversations and the vote of a person; `tie` and `tie (bothbad)` are ties:

    {"conversation_a": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "Yes."}],
     "conversation_b": [...], "winner": "model_a"}

Dropped are conversations that differ before their last answer (`prompts_differ`) or do not end with one (`no_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tasks.lib.data.rows import Row
from tasks.lib.importers.pairwise import DIFFER, pair_ranking
from tasks.lib.importers.rankings import Dropped, Export, Messages, Ranking, messages_of
from tasks.lib.stage import Problem

VERDICT_RANKS = {"model_1": [0, 1], "model_2": [1, 0], "tie": [0, 0]}
VOTE_RANKS = {"model_a": [0, 1], "model_b": [1, 0], "tie": [0, 0]}


def is_verdict(row: Row) -> bool:
    return {"g1_winner", "g2_winner"} <= row.keys()


def is_vote(row: Row) -> bool:
    return {"conversation_a", "conversation_b", "winner"} <= row.keys()


def verdicts(export: Export) -> Iterator[Ranking | Dropped]:
    """A model's verdicts on both orders of two answers."""
    for where, row in export.rows:
        first, second = row["g1_winner"], row["g2_winner"]
        if not {first, second} <= {*VERDICT_RANKS, "error"}:
            raise Problem(f"{where}: expected winners model_1, model_2, tie or error, found {first}, {second}")
        if "error" in (first, second):
            yield Dropped(where, "no_verdict", "the judge failed in one order")
        elif first != second:
            yield Dropped(where, "order_flip", f"{first}, and {second} when the answers changed places")
        elif row.get("turn", 1) != 1:  # the second turn answers first answers that differ
            yield Dropped(where, *DIFFER)
        else:
            question, answers = _shown(f"{where}:g1_user_prompt", row.get("g1_user_prompt"))
            prompt = [{"role": "user", "content": question}]
            yield pair_ranking(export, where, row, prompt, answers, VERDICT_RANKS[first])


def _shown(where: str, prompt: Any) -> tuple[str, list[str]]:
    """(question, answers A and B) from the text that the model was given."""
    question = _between("[User Question]", "\n[The Start of ", prompt)
    answer_a = _between("[The Start of Assistant A's Answer]", "[The End of Assistant A's Answer]", prompt)
    answer_b = _between("[The Start of Assistant B's Answer]", "[The End of Assistant B's Answer]", prompt)
    if question is None or answer_a is None or answer_b is None:
        raise Problem(f"{where}: expected a question and the answers of Assistant A and B (one turn)")
    return question, [answer_a, answer_b]


def _between(start: str, end: str, text: Any) -> str | None:
    match = re.search(rf"(?s){re.escape(start)}\n(.*?)\n{re.escape(end)}", str(text))
    return match[1] if match else None


def arena(export: Export) -> Iterator[Ranking | Dropped]:
    """The votes of people on two conversations."""
    for where, row in export.rows:
        winner = str(row["winner"]).lower()
        ranks = next((ranks for word, ranks in VOTE_RANKS.items() if winner.startswith(word)), None)
        if ranks is None:
            raise Problem(f"{where}:winner: expected model_a, model_b or tie, found {winner[:60]!r}")
        a = _conversation(where, row, "conversation_a")
        b = _conversation(where, row, "conversation_b")
        if a[:-1] != b[:-1]:
            yield Dropped(where, *DIFFER)
        elif not a or a[-1]["role"] != "assistant" or b[-1]["role"] != "assistant":
            yield Dropped(where, "no_answer", "the conversation does not end with an answer")
        else:
            yield pair_ranking(export, where, row, a[:-1], [a[-1]["content"], b[-1]["content"]], ranks)


def _conversation(where: str, row: Row, name: str) -> Messages:
    messages = messages_of(f"{where}:{name}", row[name])
    if isinstance(row.get("turn"), int):  # MT-bench has two turns; the vote is on this one
        return messages[: 2 * row["turn"]]
    return messages
