"""Claims about rankings of any number of answers: rows, tables and Open-Assistant's trees."""

from __future__ import annotations

import json
from typing import Any

import pytest
from importing import imported, written

from tasks.lib.stage import Problem


def test_generic_rankings_are_checked_field_by_field(tmp_path):
    good = {
        "prompt": "Q",
        "answers": ["x", "y", "z"],
        "ranks": [0, 5, 5],
        "annotator": "ann",
        "license": "MIT",
    }
    (row,), _ = imported(written(tmp_path, [good], "r.jsonl"))
    assert (row["ranks"], row["annotator"], row["license"]) == ([0, 1, 1], "ann", "MIT")
    for field, value in (
        ("ranks", [0, 1]),
        ("ranks", [0, -1, 2]),
        ("ranks", [0, True, 2]),
        ("answers", [1, 2, 3]),
        ("strength", "much"),
        ("prompt", [{"role": "robot", "content": "Q"}]),
        ("rank", 1),
    ):
        with pytest.raises(Problem, match=f"r.jsonl:2:{field}"):
            imported(written(tmp_path, [good, {**good, field: value}], "r.jsonl"))


def test_rankings_in_a_table_hold_their_lists_as_json(tmp_path):
    path = tmp_path / "rankings.csv"
    path.write_text('prompt,answers,ranks\nQ,"[""x"", ""y""]","[1, 0]"\n')
    (row,), _ = imported(path)
    assert (row["answers"], row["ranks"]) == (["x", "y"], [1, 0])


def test_openassistant_siblings_with_the_dialogue_before_them(tmp_path):
    def reply(text: str, role: str = "assistant", replies: Any = (), **fields: Any) -> dict[str, Any]:
        return {"message_id": text, "text": text, "role": role, "replies": list(replies), **fields}

    later = reply(
        "and then?", "prompter", [reply("c", rank=1), reply("d", rank=0), reply("gone", rank=2, deleted=True)]
    )
    tree = {
        "message_tree_id": "t",
        "prompt": reply("Q", "prompter", [reply("a", rank=0, replies=[later]), reply("b")]),
    }
    rows, rules = imported(written(tmp_path, [tree], "trees.jsonl"))
    assert rules == {"unranked_answer": 1, "too_few_answers": 1}
    assert [message["content"] for message in rows[0]["prompt"]] == ["Q", "a", "and then?"]
    assert (rows[0]["answers"], rows[0]["ranks"]) == (["c", "d"], [1, 0])


def test_messages_in_rows_of_their_own_are_the_same_trees(shared, tmp_path):
    path = shared / "exports/openassistant_trees_en_100.jsonl"
    flat: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        waiting: list[tuple[dict[str, Any], str | None]] = [(json.loads(line)["prompt"], None)]
        while waiting:
            message, parent = waiting.pop()
            fields = {name: message.get(name) for name in ("message_id", "text", "role", "rank", "deleted")}
            flat.append({**fields, "parent_id": parent})
            waiting += [(reply, message["message_id"]) for reply in message.get("replies") or []]
    flat.append({"message_id": "z", "text": "x", "role": "assistant", "rank": 0, "parent_id": "gone"})
    rows, rules = imported(written(tmp_path, flat[::-1], "openassistant_trees_en_100.jsonl"))
    assert rules == {"unranked_answer": 46, "no_parent": 1}

    def content(rows: list[dict[str, Any]]) -> list[tuple[str, list[tuple[int, str]]]]:
        return sorted((json.dumps(r["prompt"]), sorted(zip(r["ranks"], r["answers"], strict=True))) for r in rows)

    assert content(rows) == content(imported(path)[0])
