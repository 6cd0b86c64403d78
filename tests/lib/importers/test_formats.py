"""Claims about importing annotation exports: what is kept, what is dropped, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export
from tasks.lib.stage import Problem


def imported(path: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows, dropped, _ = cleaned(read_export(path, **options), "CC0-1.0")
    return rows, dict(Counter(item.rule for item in dropped))


def written(folder: Path, rows: list[Any], name: str = "export.json") -> Path:
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder / name


STATED: dict[str, tuple[int, dict[str, int]] | str] = {  # file -> (rankings, dropped), or why it is refused
    "exports/argilla/argilla_records.json": (2, {}),
    "exports/argilla/argilla_to_list_flatten.json": (2, {}),
    "exports/argilla_eval_ab_dataset.json": "two answers, but no field that says which is better",
    "exports/doccano_seq2seq.jsonl": "doccano export, which has texts but no preferences",
    "exports/labelstudio/labelstudio_ui_pairwise.json": (1, {"abstained": 1}),
    "exports/labelstudio/labelstudio_ui_ranker.json": (1, {"untouched": 1}),
    "exports/labelstudio/labelstudio_ui_ranker_buckets.json": (1, {"untouched": 1}),
    "exports/labelstudio/api_composed/labelstudio_pairwise_json.json": (
        3,
        {"cancelled": 1, "annotator_twice": 1},
    ),
    "exports/labelstudio/api_composed/labelstudio_ranker_json.json": (3, {}),
    "exports/labelstudio/api_composed/labelstudio_ranker_buckets_json.json": (3, {}),
    "exports/labelstudio/api_composed/labelstudio_rating_json.json": (0, {"too_few_answers": 1}),
    **{
        f"exports/labelstudio/api_composed/labelstudio_{kind}_{form}": "JSON-MIN or CSV, which loses what"
        for kind in ("pairwise", "ranker", "ranker_buckets", "rating")
        for form in ("csv.csv", "json_min.json")
    },
    **{
        f"exports/labelstudio/labelstudio_{kind}_config.xml": "found 'xml'"
        for kind in ("pairwise", "ranker", "ranker_buckets", "rating")
    },
    "exports/openassistant_trees_en_100.jsonl": (212, {"unranked_answer": 46}),
    "preferences/hh_harmless_base_test_first300.jsonl": (299, {"empty_answer": 1}),
    "preferences/llamafactory_dpo_en_demo.json": (295, {"repeated": 5}),
    "preferences/llamafactory_kto_en_demo.json": (3, {"too_few_answers": 294}),
    "preferences/llmbar_natural.json": (100, {}),
    "preferences/mt_bench_gpt4_pair_judgments.jsonl": (46, {"order_flip": 27, "no_verdict": 2}),
}


def test_every_shared_file_is_imported_to_known_counts_or_refused_with_a_reason(shared):
    files = [file for name in ("exports", "preferences") for file in (shared / name).rglob("*.*")]
    assert {str(file.relative_to(shared)) for file in files if file.is_file()} == STATED.keys()
    for name, expected in STATED.items():
        if isinstance(expected, str):
            with pytest.raises(Problem, match=f"{Path(name).name}.*{expected}"):
                imported(shared / name)
        else:
            rows, rules = imported(shared / name)
            assert (len(rows), rules) == expected, name


def test_both_shapes_of_argilla_records_hold_the_same_two_verdicts(shared):
    for name in ("argilla_records.json", "argilla_to_list_flatten.json"):
        rows, _ = imported(shared / "exports/argilla" / name)
        assert len({row["annotator"] for row in rows}) == 2
        assert all(dict(zip(r["answers"], r["ranks"], strict=True)) == {"y": 0, "x": 1} for r in rows)


def test_a_judge_of_mt_bench_who_says_the_same_in_both_orders_is_heard(shared):
    rows, _ = imported(shared / "preferences/mt_bench_gpt4_pair_judgments.jsonl")
    assert sum(row["ranks"] == [0, 0] for row in rows) == 8 and {row["annotator"] for row in rows} == {"gpt-4"}
    assert all("[The Start of" not in "".join([*row["answers"], row["prompt"][0]["content"]]) for row in rows)


def test_labels_of_llmbar_name_the_better_output(shared):
    path = shared / "preferences/llmbar_natural.json"
    labels = {item["input"]: (item["label"], item["output_1"]) for item in json.loads(path.read_text())}
    for row in imported(path)[0]:
        label, first = labels[row["prompt"][0]["content"]]
        assert (row["answers"][0] == first, row["ranks"]) == (True, [0, 1] if label == 1 else [1, 0])


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


# --- ratings of single answers ---


def test_thumbs_compare_answers_only_where_a_prompt_has_two(tmp_path):
    path = written(
        tmp_path,
        [
            {"prompt": "Q", "completion": "a", "label": True},
            {"prompt": "Q ", "completion": "b", "label": False},
            {"prompt": "alone", "completion": "c", "label": True},
            {"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "d"}], "label": True},
        ],
    )
    (row,), rules = imported(path)
    assert rules == {"too_few_answers": 1}
    assert dict(zip(row["answers"], row["ranks"], strict=True)) == {"a": 0, "b": 1, "d": 0}


def test_a_table_of_scores_or_ranks_is_grouped_by_prompt_and_annotator(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("prompt,answer,score,annotator\nQ,a,3.5,ann\nQ,b,4,ann\nQ,c,3.5,ann\nQ,a,1,bob\n")
    (row,), rules = imported(path)
    assert rules == {"too_few_answers": 1}
    assert (row["answers"], row["ranks"], row["annotator"]) == (["a", "b", "c"], [1, 0, 1], "ann")
    path.write_text("prompt,answer,rank\nQ,a,2\nQ,b,1\n")
    assert imported(path)[0][0]["ranks"] == [1, 0]
    path.write_text("prompt,answer,score\nQ,a,much\n")
    with pytest.raises(Problem, match=r"scores.csv:2:score: expected a number, found 'much'"):
        imported(path)


def test_rankings_in_a_table_hold_their_lists_as_json(tmp_path):
    path = tmp_path / "rankings.csv"
    path.write_text('prompt,answers,ranks\nQ,"[""x"", ""y""]","[1, 0]"\n')
    (row,), _ = imported(path)
    assert (row["answers"], row["ranks"]) == (["x", "y"], [1, 0])


def test_ultrafeedback_takes_the_mean_of_the_aspects(tmp_path):
    def completion(response: str, *ratings: str, **fields: Any) -> dict[str, Any]:
        aspects = {str(n): {"Rating": rating} for n, rating in enumerate(ratings)}
        return {"response": response, "annotations": aspects, **fields}

    row = {
        "instruction": "Q",
        "source": "evol",
        "completions": [
            completion("a", "5", "4", overall_score=1.0),
            completion("b", "3", "N/A", overall_score=10.0),  # a known mistake of the data set: means 1
            completion("c", "4", "5"),
            {"response": "d"},
        ],
    }
    (ranking,), rules = imported(written(tmp_path, [row]))
    assert rules == {"unranked_answer": 1} and ranking["source"] == "evol"
    assert (ranking["answers"], ranking["ranks"]) == (["a", "b", "c"], [0, 1, 0])


def test_the_chosen_dialogue_beside_a_prompt_is_not_taken_for_the_prompt(tmp_path):
    def dialogue(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]

    row = {"prompt": "Q", "messages": dialogue("a"), "chosen": dialogue("a"), "rejected": dialogue("b")}
    (first,), _ = imported(written(tmp_path, [{**row, "score_chosen": 8.0, "score_rejected": 8.0}]))
    assert first["prompt"] == [{"role": "user", "content": "Q"}] and first["ranks"] == [0, 0]
    without = {name: row[name] for name in ("chosen", "rejected")}
    assert imported(written(tmp_path, [without]))[0][0]["prompt"] == first["prompt"]
    _, rules = imported(written(tmp_path, [{**row, "score_chosen": 3, "score_rejected": 8}]))
    assert rules == {"scores_differ": 1}


def test_conversations_of_people_who_vote(tmp_path):
    def said(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    rows = [
        {"conversation_a": said("Q", "x"), "conversation_b": said("Q", "y"), "winner": "model_b"},
        {"conversation_a": said("P", "x"), "conversation_b": said("P", "y"), "winner": "tie (bothbad)"},
        {"conversation_a": said("R", "x", "and?", "v"), "conversation_b": said("R", "y", "and?", "w")}
        | {"winner": "model_a"},
    ]
    found, rules = imported(written(tmp_path, rows))
    assert rules == {"prompts_differ": 1} and sorted(row["ranks"] for row in found) == [[0, 0], [1, 0]]


def test_a_table_of_pairs_with_a_word_or_a_strength(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,answer_a,answer_b,model_a,model_b,winner\nQ,x,y,m,n,answer_b\nP,x,y,m,n,Tie\n")
    rows, _ = imported(path)
    assert {row["prompt"][0]["content"]: row["ranks"] for row in rows} == {"Q": [1, 0], "P": [0, 0]}
    path.write_text("prompt,response_1,response_2,preference_strength\nQ,x,y,-3\nP,x,y,1\n")
    found = {row["prompt"][0]["content"]: (row["ranks"], row["strength"]) for row in imported(path)[0]}
    assert found == {"Q": ([0, 1], 1.0), "P": ([1, 0], pytest.approx(1 / 3))}
    path.write_text("prompt,answer_a,answer_b,label\nQ,x,y,0\n")
    with pytest.raises(Problem, match=r"pairs.csv:2:label: expected a side or a tie, found '0'"):
        imported(path)


def test_instructions_with_an_input_and_a_system_text_are_whole_prompts(tmp_path):
    row = {"system": "Be brief.", "instruction": "Sum up", "input": "a text", "chosen": "x", "rejected": "y"}
    (ranking,), _ = imported(written(tmp_path, [row]))
    assert [message["content"] for message in ranking["prompt"]] == ["Be brief.", "Sum up\n\na text"]


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


def test_a_second_turn_of_mt_bench_is_told_and_the_file_goes_on(tmp_path):
    shown = (
        "[User Question]\nQ\n\n[The Start of Assistant A's Answer]\nx\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\ny\n[The End of Assistant B's Answer]"
    )
    row = {"g1_winner": "model_2", "g2_winner": "model_2", "g1_user_prompt": shown, "judge": ["gpt-4", "v2"]}
    rows, rules = imported(written(tmp_path, [{**row, "turn": 2, "g1_user_prompt": "<|other|>"}, row]))
    assert rules == {"prompts_differ": 1} and (rows[0]["answers"], rows[0]["ranks"]) == (["x", "y"], [1, 0])


# --- more of Label Studio and Argilla ---


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


def argilla(**responses: Any) -> dict[str, Any]:
    fields = {"prompt": "Q", "response_a": "x", "response_b": "y", "response_c": "z"}
    return {"fields": fields, "responses": responses, "status": "completed"}


def said(value: Any, user: str = "u", status: str = "submitted") -> dict[str, Any]:
    return {"value": value, "user_id": user, "status": status}


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


def test_a_stated_format_that_the_rows_do_not_have_is_refused(tmp_path):
    path = written(tmp_path, [{"prompt": "Q", "chosen": "x", "rejected": "y"}])
    assert len(imported(path, format="pairs")[0]) == 1
    with pytest.raises(Problem, match="stated to be rankings, but its rows look like pairs"):
        imported(path, format="rankings")
    with pytest.raises(Problem, match="votes is no format"):
        imported(path, format="votes")
