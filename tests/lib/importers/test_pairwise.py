"""Claims about tables of pairs, hh-rlhf, MT-bench and Chatbot Arena."""

from __future__ import annotations

import json

import pytest
from importing import imported, written

from tasks.lib.stage import Problem


def test_labels_of_llmbar_name_the_better_output(shared):
    path = shared / "preferences/llmbar_natural.json"
    labels = {item["input"]: (item["label"], item["output_1"]) for item in json.loads(path.read_text())}
    for row in imported(path)[0]:
        label, first = labels[row["prompt"][0]["content"]]
        assert (row["answers"][0] == first, row["ranks"]) == (True, [0, 1] if label == 1 else [1, 0])


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


def test_a_judge_of_mt_bench_who_says_the_same_in_both_orders_is_heard(shared):
    rows, _ = imported(shared / "preferences/mt_bench_gpt4_pair_judgments.jsonl")
    assert sum(row["ranks"] == [0, 0] for row in rows) == 8 and {row["annotator"] for row in rows} == {"gpt-4"}
    assert all("[The Start of" not in "".join([*row["answers"], row["prompt"][0]["content"]]) for row in rows)


def test_a_second_turn_of_mt_bench_is_told_and_the_file_goes_on(tmp_path):
    shown = (
        "[User Question]\nQ\n\n[The Start of Assistant A's Answer]\nx\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\ny\n[The End of Assistant B's Answer]"
    )
    row = {"g1_winner": "model_2", "g2_winner": "model_2", "g1_user_prompt": shown, "judge": ["gpt-4", "v2"]}
    rows, rules = imported(written(tmp_path, [{**row, "turn": 2, "g1_user_prompt": "<|other|>"}, row]))
    assert rules == {"prompts_differ": 1} and (rows[0]["answers"], rows[0]["ranks"]) == (["x", "y"], [1, 0])


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
