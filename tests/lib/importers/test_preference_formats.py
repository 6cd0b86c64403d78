"""Claims about telling formats apart: every shared file is imported to known counts, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from importing import imported, written

from tasks.lib.stage import Problem

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
    "exports/openassistant_trees_en_100.jsonl": (212, {"unranked_answer": 46}),
    "preferences/hh_harmless_base_test_first300.jsonl": (299, {"empty_answer": 1}),
    "preferences/llamafactory_dpo_en_demo.json": (295, {"repeated": 5}),
    "preferences/llamafactory_kto_en_demo.json": (3, {"too_few_answers": 294}),
    "preferences/llmbar_natural.json": (100, {}),
    "preferences/mt_bench_gpt4_pair_judgments.jsonl": (46, {"order_flip": 27, "no_verdict": 2}),
}
for kind in ("pairwise", "ranker", "ranker_buckets", "rating"):
    for form in ("csv.csv", "json_min.json"):
        STATED[f"exports/labelstudio/api_composed/labelstudio_{kind}_{form}"] = "JSON-MIN or CSV, which loses what"
    STATED[f"exports/labelstudio/labelstudio_{kind}_config.xml"] = "found 'xml'"


def test_every_shared_file_is_imported_to_known_counts_or_refused_with_a_reason(shared):
    files = [*(shared / "exports").rglob("*.*"), *(shared / "preferences").rglob("*.*")]
    assert {str(file.relative_to(shared)) for file in files if file.is_file()} == STATED.keys()
    for name, expected in STATED.items():
        if isinstance(expected, str):
            with pytest.raises(Problem, match=f"{Path(name).name}.*{expected}"):
                imported(shared / name)
        else:
            rows, rules = imported(shared / name)
            assert (len(rows), rules) == expected, name


def test_two_formats_in_one_file_are_a_mistake(tmp_path):
    rows = [
        {"prompt": "Q", "answers": ["x", "y"], "ranks": [0, 1]},
        {"prompt": "Q", "chosen": "x", "rejected": "y"},
    ]
    with pytest.raises(Problem, match=r"r.jsonl:2: expected a row of rankings like the first"):
        imported(written(tmp_path, rows, "r.jsonl"))


def test_a_stated_format_that_the_rows_do_not_have_is_refused(tmp_path):
    path = written(tmp_path, [{"prompt": "Q", "chosen": "x", "rejected": "y"}])
    assert len(imported(path, format="pairs")[0]) == 1
    with pytest.raises(Problem, match="stated to be rankings, but its rows look like pairs"):
        imported(path, format="rankings")
    with pytest.raises(Problem, match="votes is not a format"):
        imported(path, format="votes")
