"""Claims about records of Argilla."""

from __future__ import annotations

from typing import Any

from importing import imported, written


def argilla(**responses: Any) -> dict[str, Any]:
    fields = {"prompt": "Q", "response_a": "x", "response_b": "y", "response_c": "z"}
    return {"fields": fields, "responses": responses, "status": "completed"}


def said(value: Any, user: str = "u", status: str = "submitted") -> dict[str, Any]:
    return {"value": value, "user_id": user, "status": status}


def test_both_shapes_of_argilla_records_hold_the_same_two_verdicts(shared):
    for name in ("argilla_records.json", "argilla_to_list_flatten.json"):
        rows, _ = imported(shared / "exports/argilla" / name)
        assert len({row["annotator"] for row in rows}) == 2
        assert all(dict(zip(r["answers"], r["ranks"], strict=True)) == {"y": 0, "x": 1} for r in rows)


def test_argilla_ties_ratings_and_what_was_discarded(tmp_path):
    tied = [{"value": name, "rank": rank} for name, rank in (("response_a", 2), ("response_c", 1))]
    record = argilla(
        rank=[said(tied, "ann"), said(["response_a", "response_b"], "bob", "discarded")],
        rating_response_a=[said(2, "cleo")],
        rating_response_b=[said(2, "cleo")],
        why=[said("because", "dev")],
    )
    rows, rules = imported(written(tmp_path, [record, argilla()]))
    assert rules == {"cancelled": 1, "abstained": 1, "unannotated": 1}
    assert {row["annotator"]: (row["answers"], row["ranks"]) for row in rows} == {
        "ann": (["x", "z"], [1, 0]),
        "cleo": (["x", "y"], [0, 0]),
    }


def test_argilla_1_and_its_exported_data_set(tmp_path):
    fields = {"prompt": "Q", "response_a": "x", "response_b": "y"}
    old: dict[str, Any] = {"fields": fields, "responses": [{"user_id": "u", "status": "submitted"}]}
    old["responses"][0]["values"] = {"pref": {"value": "response_b"}}
    exported = {**fields, "pref": [said("b")]}
    for row in (old, exported):
        (ranking,), _ = imported(written(tmp_path, [row]))
        assert (ranking["answers"], ranking["ranks"], ranking["annotator"]) == (["x", "y"], [1, 0], "u")
