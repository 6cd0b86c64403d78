"""Claims about ratings of single answers that become rankings."""

from __future__ import annotations

from typing import Any

import pytest
from importing import imported, written

from tasks.lib.stage import Problem


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
