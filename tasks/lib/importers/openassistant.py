"""Open-Assistant message trees (arXiv 2304.07327): the ranked replies of the assistant to one message are a ranking.

`trees` reads a row per tree, whose messages hold their replies:

    {"message_tree_id": "t", "prompt": {"message_id": "t", "text": "Q", "role": "prompter", "replies": [
        {"message_id": "u", "text": "Yes.", "role": "assistant", "rank": 0, "replies": []}, ...]}}

`messages` reads a row per message, as the data set is published; parents may come after replies:

    {"message_id": "u", "parent_id": "t", "text": "Yes.", "role": "assistant", "rank": 0}

Rank 0 is the best; equal ranks are a tie. A reply without a rank is dropped (`unranked_answer`), and so are the only
ranked reply to a message (`too_few_answers`) and a reply to a message that is not in the file (`no_parent`).
"""

from __future__ import annotations

from collections.abc import Iterator

from tasks.lib.data.rows import ROLES, Row
from tasks.lib.importers.rankings import Dropped, Export, Messages, Ranking
from tasks.lib.stage import Problem


def is_tree(row: Row) -> bool:
    return isinstance(row.get("prompt"), dict) and "message_tree_id" in row


def is_message(row: Row) -> bool:
    return {"message_id", "parent_id", "text", "role"} <= row.keys()


def trees(export: Export) -> Iterator[Ranking | Dropped]:
    """Rankings of the replies in trees of messages."""
    for where, row in export.rows:
        yield from _ranked_replies(export, where, row["prompt"])


def messages(export: Export) -> Iterator[Ranking | Dropped]:
    """The same of a row per message."""
    known: dict[str, Row] = {}
    for where, row in export.rows:
        if row["message_id"] in known:
            raise Problem(f"{where}:message_id: {row['message_id']} occurs twice")
        known[row["message_id"]] = {**row, "replies": []}
    roots = []
    for message in known.values():
        if not message["parent_id"]:
            roots.append(message)
        elif message["parent_id"] in known:
            known[message["parent_id"]]["replies"].append(message)
        else:
            where = f"{export.path}:{message['message_id']}"
            yield Dropped(where, "no_parent", "a reply to a message that is not here")
    for root in roots:
        yield from _ranked_replies(export, f"{export.path}:{root['message_id']}", root)


def _ranked_replies(export: Export, where: str, root: Row) -> Iterator[Ranking | Dropped]:
    """The ranking of the replies to every message, down the tree."""
    waiting: list[tuple[Row, Messages]] = [(root, [])]  # messages to visit, each with the dialogue before it
    while waiting:
        message, before = waiting.pop()
        if not isinstance(message.get("text"), str) or message.get("role") not in ROLES:
            raise Problem(f"{where}: expected messages of role and text, found {', '.join(message)}")
        dialogue = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
        ranked = []
        for reply in replies:
            if reply.get("role") != "assistant":
                continue
            if isinstance(reply.get("rank"), (int, float)):  # a table with gaps holds 1.0
                ranked.append(reply)
            else:
                yield Dropped(f"{where}:{reply.get('message_id')}", "unranked_answer", "a reply without a rank")
        if len(ranked) == 1:
            yield Dropped(f"{where}:{ranked[0].get('message_id')}", "too_few_answers", "a reply without a rival")
        elif ranked:
            place = f"{where}:{message.get('message_id')}"
            answers = [reply["text"] for reply in ranked]
            ranks = [int(reply["rank"]) for reply in ranked]
            yield Ranking(place, dialogue, answers, ranks, export.path.stem, export.path.stem)
        for reply in reversed(replies):  # the first is visited next
            waiting.append((reply, dialogue))
