"""Open-Assistant message trees (arXiv 2304.07327): the ranked replies to one message are a ranking."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import ROLES
from tasks.lib.importers.rankings import Dropped, Judgement, Messages
from tasks.lib.stage import Problem

Row = dict[str, Any]


def trees(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[Judgement | Dropped]:
    for number, row in rows:
        yield from _ranked_replies(path, f"{path}:{number}", row["prompt"])


def messages(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[Judgement | Dropped]:
    """The same from a row per message, as the published data set has them; parents may come after replies."""
    known: dict[str, Row] = {}
    for number, row in rows:
        if row["message_id"] in known:
            raise Problem(f"{path}:{number}:message_id: {row['message_id']} is there twice")
        known[row["message_id"]] = {**row, "replies": []}
    roots = []
    for message in known.values():
        parent = known.get(message["parent_id"]) if message["parent_id"] else None
        if parent:
            parent["replies"].append(message)
        elif message["parent_id"]:
            yield Dropped(f"{path}:{message['message_id']}", "no_parent", "a reply to a message that is not here")
        else:
            roots.append(message)
    for root in roots:
        yield from _ranked_replies(path, f"{path}:{root['message_id']}", root)


def _ranked_replies(path: Path, where: str, root: Row) -> Iterator[Judgement | Dropped]:
    """The ranking of the replies to every message, down the tree. Rank 0 is the best."""
    waiting: list[tuple[Row, Messages]] = [(root, [])]
    while waiting:
        message, before = waiting.pop()
        if not isinstance(message.get("text"), str) or message.get("role") not in ROLES:
            raise Problem(f"{where}: expected messages of role and text, found {', '.join(message)}")
        dialogue = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
        ranked = []
        for reply in (r for r in replies if r.get("role") == "assistant"):
            if isinstance(reply.get("rank"), (int, float)):  # a table with gaps holds 1.0
                ranked.append(reply)
            else:
                place = f"{where}:{reply.get('message_id')}"
                yield Dropped(place, "unranked_answer", "a reply without a rank")
        if len(ranked) == 1:
            place = f"{where}:{ranked[0].get('message_id')}"
            yield Dropped(place, "too_few_answers", "a reply without a rival")
        elif ranked:
            answers, ranks = [reply["text"] for reply in ranked], [int(reply["rank"]) for reply in ranked]
            place = f"{where}:{message.get('message_id')}"
            yield Judgement(place, dialogue, answers, ranks, path.stem, path.stem)
        waiting += [(reply, dialogue) for reply in reversed(replies)]
