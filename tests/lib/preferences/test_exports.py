"""Claims about importing annotation exports: what is kept, what is dropped, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.lib.preferences.exports import read_export
from tasks.lib.preferences.rankings import cleaned
from tasks.lib.stage import Problem


def imported(path: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows, dropped, _ = cleaned(read_export(path, **options), "CC0-1.0")
    return rows, dict(Counter(item.rule for item in dropped))


def written(folder: Path, rows: list[Any], name: str = "export.json") -> Path:
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder / name


def test_every_format_of_the_shared_exports_is_read_with_known_counts(shared):
    counts = {
        "exports/labelstudio/labelstudio_ui_pairwise.json": (1, {"abstained": 1}),
        "exports/labelstudio/labelstudio_ui_ranker.json": (1, {"untouched": 1}),
        "exports/labelstudio/labelstudio_ui_ranker_buckets.json": (1, {"untouched": 1}),
        "exports/labelstudio/api_composed/labelstudio_pairwise_json.json": (
            3,
            {"cancelled": 1, "annotator_twice": 1},
        ),
        "exports/labelstudio/api_composed/labelstudio_ranker_json.json": (3, {}),
        "exports/labelstudio/api_composed/labelstudio_ranker_buckets_json.json": (3, {}),
        "exports/openassistant_trees_en_100.jsonl": (212, {"unranked_answer": 46}),
        "preferences/hh_harmless_base_test_first300.jsonl": (299, {"empty_answer": 1}),
        "preferences/llamafactory_dpo_en_demo.json": (295, {"annotator_twice": 5}),
    }
    for name, (kept, dropped) in counts.items():
        rows, rules = imported(shared / name)
        assert (len(rows), rules) == (kept, dropped), name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("exports/doccano_seq2seq.jsonl", "doccano"),
        ("exports/labelstudio/api_composed/labelstudio_ranker_json_min.json", "JSON-MIN"),
        ("exports/labelstudio/api_composed/labelstudio_rating_json.json", "rating"),
        ("preferences/llmbar_natural.json", "labels of single rows"),
        ("preferences/mt_bench_gpt4_pair_judgments.jsonl", "g1_winner"),
    ],
)
def test_what_is_no_known_format_is_refused_by_name_and_reason(shared, name, why):
    with pytest.raises(Problem, match=f"{Path(name).name}.*{why}"):
        imported(shared / name)


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


def test_hh_transcripts_share_their_beginning(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A or B?\n\nAssistant:"
    path = written(
        tmp_path,
        [
            {"chosen": f"{start} A", "rejected": f"{start} B"},
            {"chosen": f"{start} A", "rejected": "\n\nHuman: Something else\n\nAssistant: B"},
            {"chosen": f"{start} A", "rejected": f"{start}  A "},
            {"chosen": f"{start} A", "rejected": f"{start} "},
        ],
        "hh.jsonl",
    )
    rows, rules = imported(path)
    assert rules == {"prompts_differ": 1, "equal_answers": 1, "empty_answer": 1}
    assert [message["role"] for message in rows[0]["prompt"]] == ["user", "assistant", "user"]
    assert (rows[0]["answers"], rows[0]["ranks"]) == (["A", "B"], [0, 1])


def test_pairs_come_with_answers_as_text_message_or_dialogue(tmp_path):
    prompt = [{"role": "user", "content": "Q"}]
    path = written(
        tmp_path,
        [
            {"prompt": "Q", "chosen": "a", "rejected": "b"},
            {
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": "c"}],
                "rejected": [{"role": "assistant", "content": "d"}],
            },
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "e"},
                "rejected": {"from": "gpt", "value": "f"},
            },
            {
                "prompt": "Q",
                "chosen": [*prompt, {"role": "assistant", "content": "g"}],
                "rejected": [*prompt, {"role": "assistant", "content": "h"}],
            },
        ],
    )
    rows, rules = imported(path)
    assert rules == {} and all(row["prompt"] == prompt for row in rows)
    assert sorted("".join(row["answers"]) for row in rows) == ["ab", "cd", "ef", "gh"]


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


def test_two_formats_in_one_file_are_a_mistake(tmp_path):
    rows = [
        {"prompt": "Q", "answers": ["x", "y"], "ranks": [0, 1]},
        {"prompt": "Q", "chosen": "x", "rejected": "y"},
    ]
    with pytest.raises(Problem, match=r"r.jsonl:2: expected a row of rankings like the first"):
        imported(written(tmp_path, rows, "r.jsonl"))


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
