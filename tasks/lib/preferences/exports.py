"""Preference data of several tools, told apart by what their rows look like.

labelstudio    full JSON export: pairwise, ranker, bucket ranker
hh             hh-rlhf: {chosen, rejected}, two transcripts with a common beginning
pairs          {prompt | messages | conversations, chosen, rejected}
openassistant  message trees; the ranked replies to one message are a ranking
rankings       {prompt, answers, ranks} and optionally annotator, strength, source, license
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import read_table
from tasks.lib.preferences import labelstudio
from tasks.lib.preferences.rankings import Dropped, Judgement, Messages
from tasks.lib.stage import Problem

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row]]
SUFFIXES = (".json", ".jsonl", ".gz")
FORMATS = "Label Studio JSON, hh-rlhf, pairs, Open-Assistant trees, rankings"
ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_export(
    path: Path, *, buckets: Sequence[str] = (), untouched_seconds: float = 5.0
) -> Iterator[Judgement | Dropped]:
    """Everything that one export file holds. A file of no known format is a Problem that says why."""
    rows = read_table(path)
    first = next(rows)
    name = format_of(path, first[1])
    rows = chain([first], rows)
    if name == "labelstudio":
        return labelstudio.read(
            path, _shaped(path, name, rows), buckets=buckets, untouched_seconds=untouched_seconds
        )
    readers: dict[str, Callable[[Path, Rows], Iterator[Judgement | Dropped]]] = {
        "hh": _transcripts,
        "pairs": _pairs,
        "openassistant": _trees,
        "rankings": _rankings,
    }
    return readers[name](path, _shaped(path, name, rows))


def format_of(path: Path, row: Mapping[str, Any]) -> str:
    """The format of a row, by its fields. Raises Problem naming the file and why nothing fits."""
    if format := _format_of(row):
        return format
    why = f"rows with the fields {', '.join(list(row)[:8])}"
    if {"annotator", "annotation_id"} <= row.keys():
        why = "Label Studio's JSON-MIN or CSV, which loses what was cancelled; export as JSON"
    elif {"text", "annotations"} <= row.keys():
        why = "a doccano export, which has texts but no preferences"
    elif "label" in row or "kto_tag" in row:
        why = f"{why}: labels of single rows, no preferences between answers"
    raise Problem(f"{path}: expected preferences ({FORMATS}), found {why}")


def _format_of(row: Mapping[str, Any]) -> str | None:
    if isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list):
        return "labelstudio"
    if isinstance(row.get("prompt"), dict) and "message_tree_id" in row:
        return "openassistant"
    if {"chosen", "rejected"} <= row.keys():
        if {"prompt", "messages", "conversations"} & row.keys():
            return "pairs"
        return "hh" if "\n\nHuman:" in str(row["chosen"]) else None
    return "rankings" if {"prompt", "answers", "ranks"} <= row.keys() else None


def _shaped(path: Path, format: str, rows: Rows) -> Rows:
    """The rows, each of the first row's format: a file of two formats is two files by mistake."""
    for number, row in rows:
        if _format_of(row) != format:
            raise Problem(
                f"{path}:{number}: expected a row of {format} like the first, found {', '.join(row)}"
            )
        yield number, row


# --- hh-rlhf ---


def _transcripts(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for number, row in rows:
        where = f"{path}:{number}"
        chosen, rejected = (_turns(f"{where}:{name}", row[name]) for name in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            yield Dropped(where, "prompts_differ", "chosen and rejected answer different dialogues")
        elif chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant" or len(chosen) < 2:
            yield Dropped(where, "no_answer", "the transcript does not end with an answer to somebody")
        else:
            yield _pair(path, where, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])


def _turns(where: str, text: Any) -> Messages:
    parts = re.split(r"\n\n(Human|Assistant):", text) if isinstance(text, str) else []
    if len(parts) < 3 or parts[0].strip():
        raise Problem(f"{where}: expected a transcript of Human: and Assistant:, found {str(text)[:60]!r}")
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


# --- pairs ---


def _pairs(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for number, row in rows:
        where = f"{path}:{number}"
        prompt = labelstudio.prompt_of(
            where, {**row, "messages": _messages(row["conversations"])} if "conversations" in row else row
        )
        (before, chosen), (before_too, rejected) = (
            _answer(where, row, name, prompt) for name in ("chosen", "rejected")
        )
        if before != before_too:
            yield Dropped(where, "prompts_differ", "chosen and rejected answer different dialogues")
        else:
            yield _pair(path, where, before, chosen, rejected, row)


def _messages(value: Any) -> Any:
    """{from, value} messages as {role, content}; anything else as it is, for the check that follows."""
    if not isinstance(value, list):
        return value
    return [
        {
            "role": ROLES.get(str(m.get("from", m.get("role"))), "unknown"),
            "content": m.get("value", m.get("content")),
        }
        if isinstance(m, dict)
        else m
        for m in value
    ]


def _answer(where: str, row: Row, name: str, prompt: Messages) -> tuple[Messages, str]:
    """(the dialogue before it, the answer), of an answer that is text, a message, or a whole dialogue."""
    value = row[name]
    if isinstance(value, str):
        return prompt, value
    turns = _messages([value] if isinstance(value, dict) else value)
    last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise Problem(
            f"{where}:{name}: expected an answer as text or as a message, found {str(value)[:60]!r}"
        )
    before = turns[:-1]
    return (before if before[: len(prompt)] == prompt else prompt + before), last["content"]


def _pair(
    path: Path, where: str, prompt: Messages, chosen: str, rejected: str, row: Row | None = None
) -> Judgement:
    said = row or {}
    return Judgement(
        where,
        prompt,
        [chosen, rejected],
        [0, 1],
        str(said.get("annotator", path.stem)),
        str(said.get("source", path.stem)),
        said.get("license"),
    )


# --- Open-Assistant ---


def _trees(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    for number, row in rows:
        yield from _ranked_replies(path, f"{path}:{number}", row["prompt"], [])


def _ranked_replies(path: Path, where: str, message: Row, before: Messages) -> Iterator[Judgement | Dropped]:
    """The ranking of the replies to `message`, then those further down the tree. Rank 0 is the best."""
    if not isinstance(message.get("text"), str) or message.get("role") not in ROLES:
        raise Problem(f"{where}: expected messages of role and text, found {', '.join(message)}")
    dialogue = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
    replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
    ranked = []
    for reply in (r for r in replies if r.get("role") == "assistant"):
        if isinstance(reply.get("rank"), int):
            ranked.append(reply)
        else:
            yield Dropped(f"{where}:{reply.get('message_id')}", "unranked_answer", "a reply without a rank")
    if len(ranked) == 1:
        yield Dropped(f"{where}:{ranked[0].get('message_id')}", "too_few_answers", "a reply without a rival")
    elif ranked:
        answers, ranks = [reply["text"] for reply in ranked], [reply["rank"] for reply in ranked]
        yield Judgement(
            f"{where}:{message.get('message_id')}", dialogue, answers, ranks, path.stem, path.stem
        )
    for reply in replies:
        yield from _ranked_replies(path, where, reply, dialogue)


# --- rankings ---


def _rankings(path: Path, rows: Rows) -> Iterator[Judgement | Dropped]:
    known = {"id", "prompt", "answers", "ranks", "annotator", "strength", "source", "license"}
    for number, row in rows:
        where = f"{path}:{number}"
        answers, ranks = row["answers"], row["ranks"]
        if extra := row.keys() - known:
            raise Problem(
                f"{where}:{min(extra)}: expected only the fields {', '.join(sorted(known))}, found this one"
            )
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise Problem(f"{where}:answers: expected a list of texts, found {str(answers)[:60]!r}")
        if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise Problem(f"{where}:ranks: expected whole numbers from 0 (best), found {str(ranks)[:60]!r}")
        if len(ranks) != len(answers):
            raise Problem(f"{where}:ranks: expected one per answer, {len(answers)}, found {len(ranks)}")
        strength = row.get("strength")
        if strength is not None and (not isinstance(strength, (int, float)) or isinstance(strength, bool)):
            raise Problem(f"{where}:strength: expected a number, found {str(strength)[:60]!r}")
        yield Judgement(
            where,
            labelstudio.prompt_of(where, row),
            answers,
            ranks,
            str(row.get("annotator") or path.stem),
            str(row.get("source") or path.stem),
            row.get("license"),
            strength,
        )
