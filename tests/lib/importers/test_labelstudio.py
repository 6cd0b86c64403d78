"""Claims about exports of Label Studio."""

from __future__ import annotations

from typing import Any

import pytest
from importing import imported, written

from tasks.lib.stage import Problem


def test_real_label_studio_rankings_are_read_as_they_were_made(shared):
    folder = shared / "exports/labelstudio"
    (pair,), _ = imported(folder / "labelstudio_ui_pairwise.json")
    assert (pair["answers"], pair["ranks"]) == (["It is 2.", "I am not sure."], [0, 1])
    (ranker,), _ = imported(folder / "labelstudio_ui_ranker.json")
    assert dict(zip(ranker["answers"], ranker["ranks"], strict=True)) == {
        "answer number 2": 0,
        "answer number 0": 1,
        "answer number 1": 2,
    }
    (buckets,), _ = imported(folder / "labelstudio_ui_ranker_buckets.json")
    # answer 1 stayed unassigned; the empty bucket between best and bad leaves no gap
    assert dict(zip(buckets["answers"], buckets["ranks"], strict=True)) == {
        "answer number 2": 0,
        "answer number 0": 1,
    }
    assert buckets["annotator"] == "1" and buckets["prompt"] == [{"role": "user", "content": "Q0"}]


def test_a_later_tie_replaces_the_annotators_first_choice(shared):
    rows, _ = imported(shared / "exports/labelstudio/api_composed/labelstudio_pairwise_json.json")
    ranks = {row["prompt"][0]["content"]: (row["ranks"], row["strength"]) for row in rows}
    assert ranks == {
        "Q0: What is 2+0?": ([0, 0], 0.0),
        "Q1: What is 2+1?": ([1, 0], pytest.approx(1 / 3)),
        "Q2: What is 2+2?": ([0, 1], pytest.approx(1 / 3)),
    }


def labelled(ranker: dict[str, list[str]], **fields: Any) -> dict[str, Any]:
    """A task of a ranker with the answers a, b, c, as Label Studio exports it."""
    answers = [{"id": name, "title": name, "body": f"answer {name}"} for name in "abc"]
    result = [{"type": "ranker", "value": {"ranker": ranker}}]
    annotation = {
        "id": 1,
        "completed_by": 7,
        "result": result,
        "was_cancelled": False,
        "lead_time": 20.0,
        "updated_at": "2026-01-01T00:00:00Z",
    }
    return {"id": 1, "data": {"prompt": "Q", "items": answers}, "annotations": [{**annotation, **fields}]}


def test_the_shown_order_counts_as_untouched_only_when_it_came_fast(tmp_path):
    order = {"rank": ["a", "b", "c"]}
    for seconds, expected in ((2.0, {"untouched": 1}), (20.0, {}), (None, {})):
        rows, rules = imported(written(tmp_path, [labelled(order, lead_time=seconds)]))
        assert rules == expected and len(rows) == 1 - len(expected)
    assert imported(written(tmp_path, [labelled({"rank": ["b", "a", "c"]}, lead_time=2.0)]))[1] == {}


def test_buckets_that_a_database_reordered_are_refused_until_their_order_is_stated(tmp_path):
    path = written(tmp_path, [labelled({"_": [], "ok": ["a"], "bad": ["b"], "best": ["c"]})])
    with pytest.raises(Problem, match=r"preferences\.buckets"):
        imported(path)
    (row,), _ = imported(path, buckets=["best", "ok", "bad"])
    assert dict(zip(row["answers"], row["ranks"], strict=True)) == {
        "answer a": 1,
        "answer b": 2,
        "answer c": 0,
    }
    with pytest.raises(Problem, match="says good, bad"):
        imported(path, buckets=["good", "bad"])


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (labelled({"rank": ["a", "z"]}), "the answer z, which the task does not list"),
        (labelled({"rank": ["a", "a"]}), "an answer twice"),
        (labelled({"rank": ["b", "a"]}, completed_by=None), "completed_by"),
        ({**labelled({"rank": ["b", "a"]}), "data": {"prompt": "Q"}}, "one list of answers"),
        (
            {
                **labelled({"rank": ["b", "a"]}),
                "data": {"items": [{"id": "a", "body": "x"}, {"id": "b", "body": "y"}]},
            },
            "prompt: expected text",
        ),
    ],
)
def test_a_broken_label_studio_task_is_named(tmp_path, task, why):
    with pytest.raises(Problem, match=f"export.json:1:annotation 1.*{why}"):
        imported(written(tmp_path, [task]))


def test_the_annotators_address_is_not_carried_along(tmp_path):
    who = {"id": 3, "email": "someone@example.org"}
    (row,), _ = imported(written(tmp_path, [labelled({"rank": ["b", "a", "c"]}, completed_by=who)]))
    assert row["annotator"] == "3"


def test_ratings_of_one_answer_per_task_become_a_ranking_of_the_prompt(tmp_path):
    def task(answer: str, stars: int, number: int) -> dict[str, Any]:
        made = labelled({})
        made["data"] = {"prompt": "Q", "response": answer}
        results = [{"type": "rating", "to_name": "response", "value": {"rating": stars}}]
        made["annotations"][0] |= {"id": number, "result": results}
        return made

    (row,), rules = imported(written(tmp_path, [task("a", 2, 1), task("b", 5, 2), task("c", 2, 3)]))
    assert rules == {} and (row["answers"], row["ranks"]) == (["a", "b", "c"], [1, 0, 1])


def test_a_choice_names_an_answer_and_an_image_project_is_refused(tmp_path):
    def task(kind: str, value: dict[str, Any]) -> dict[str, Any]:
        made = labelled({}, result=[{"type": kind, "value": value}])
        return {**made, "data": {"prompt": "Q", "answer_a": "x", "answer_b": "y"}}

    for word, ranks in (("B", [1, 0]), ("answer_a", [0, 1]), ("Left", [0, 1]), ("Both are bad", [0, 0])):
        (row,), _ = imported(written(tmp_path, [task("choices", {"choices": [word]})]))
        assert row["ranks"] == ranks, word
    with pytest.raises(Problem, match="the choice 'positive' names no answer"):
        imported(written(tmp_path, [task("choices", {"choices": ["positive"]})]))
    with pytest.raises(Problem, match="holds rectanglelabels, as in a project of images"):
        imported(written(tmp_path, [task("rectanglelabels", {"x": 1})]))
