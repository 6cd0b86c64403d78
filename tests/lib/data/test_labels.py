"""Labelled texts: from curated rows and from tables, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.lib.data.labels import classes, majority, read_labelled
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.stage import Problem


def curated(folder: Path, split: str, labels: dict[str, str], task: str = "mood", template: str = "t") -> list[Any]:
    return [
        {"id": f"{text}{template}", "source": "s", "license": "CC0-1.0", "cluster": "c", "task": task,
         "template": template, "split": split, "messages": [{"role": "user", "content": f"{template} {text}"}],
         "answer": label, "choices": None, "label": label, "measure": "exact", "row": f"row of {text}",
         "text": text}
        for text, label in labels.items()
    ]  # fmt: skip


def written(folder: Path, train: list[Any]) -> Path:
    for split, name in {"validation": "validation", "rows": "evaluation"}.items():
        write_parquet(folder / f"{name}.parquet", curated(folder, split, {f"{split} 1": "sad"}), INSTRUCTION)
    write_parquet(folder / "train.parquet", train, INSTRUCTION)
    return folder


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


GOOD = [{"text": f"text {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(200)]


def test_a_raw_row_counts_once_whatever_its_templates_and_other_tasks_are_left_out(tmp_path: Path) -> None:
    labels = {"good day": "happy", "bad day": "sad"}
    rows = [*curated(tmp_path, "train", labels), *curated(tmp_path, "train", labels, template="u")]
    splits = read_labelled(
        written(tmp_path, [*rows, *curated(tmp_path, "train", {"x": "y"}, task="other")]), "mood", False
    )
    assert [(row.text, row.label) for row in splits["train"]] == [("good day", "happy"), ("bad day", "sad")]
    assert splits["train"][1].where == f"{tmp_path}/train.parquet:2"


def test_templates_that_call_the_label_of_a_row_differently_are_a_problem(tmp_path: Path) -> None:
    rows = [
        *curated(tmp_path, "train", {"good day": "happy"}),
        *curated(tmp_path, "train", {"good day": "yes"}, template="u"),
    ]
    with pytest.raises(Problem, match=r"train\.parquet:2:label: expected 'happy', as by another template"):
        read_labelled(written(tmp_path, rows), "mood", False)


def test_a_table_is_split_by_the_hash_of_its_texts_and_equal_texts_stay_together(tmp_path: Path) -> None:
    splits = read_labelled(table(tmp_path / "t.jsonl", [*GOOD, *GOOD]), "parity", False)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 316,
        "validation": 46,
        "test": 38,
    }
    texts = [{row.text for row in rows} for rows in splits.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@pytest.mark.parametrize(
    ("row", "numbers", "message"),
    [
        ({"text": "a"}, False, "t.jsonl:201:label: expected a column of this name, found the columns 'text'"),
        ({"text": " ", "label": "a"}, False, "t.jsonl:201:text: expected a text, found an empty one"),
        ({"text": 3, "label": "a"}, False, "t.jsonl:201:text: expected a text, found int 3"),
        ({"text": "a", "label": None}, False, "t.jsonl:201:label: expected the name or the number of a class"),
        ({"text": "a", "label": 0.5}, False, "t.jsonl:201:label: expected the name or the number of a class"),
        ({"text": "a", "label": "many"}, True, "t.jsonl:201:label: expected a finite number, for a regression"),
        ({"text": "a", "label": "inf"}, True, "t.jsonl:201:label: expected a finite number"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_file_row_and_field(
    tmp_path: Path, row: dict[str, Any], numbers: bool, message: str
) -> None:
    good = [{"text": each["text"], "label": 1} if numbers else each for each in GOOD]
    with pytest.raises(Problem) as problem:
        read_labelled(table(tmp_path / "t.jsonl", [*good, row]), "parity", numbers)
    assert message in str(problem.value)


def test_numbers_of_a_csv_are_targets_and_class_numbers_of_jsonl_are_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"text {n},{n / 2}\n" for n in range(100)))
    assert {row.number for rows in read_labelled(tmp_path / "t.csv", "t", True).values() for row in rows} == {
        n / 2 for n in range(100)
    }
    rows = [{"text": row["text"], "label": int(row["label"] == "odd")} for row in GOOD]
    assert classes(read_labelled(table(tmp_path / "t.jsonl", rows), "t", False), "t") == ["0", "1"]


def test_labels_that_are_no_classes_are_a_problem(tmp_path: Path) -> None:
    def labelled(label: Any) -> dict[str, Any]:
        rows = [{"text": row["text"], "label": label(row)} for row in GOOD]
        return read_labelled(table(tmp_path / "t.jsonl", rows), "t", False)

    with pytest.raises(Problem, match="every training row has the label 'one'"):
        classes(labelled(lambda row: "one"), "t")
    with pytest.raises(Problem, match="free text, not classes"):
        classes(labelled(lambda row: row["text"]), "t")
    splits = labelled(lambda row: row["label"])
    rare = splits["test"][0]._replace(label="rare")
    with pytest.raises(Problem, match=r"t\.jsonl:\d+:label: expected a label of the training rows .* found 'rare'"):
        classes({**splits, "test": [rare]}, "t")


def test_the_majority_is_the_most_frequent_label_and_a_tie_goes_by_name(tmp_path: Path) -> None:
    rows = read_labelled(table(tmp_path / "t.jsonl", GOOD), "t", False)["train"]
    assert majority([row for row in rows if row.label == "odd"] + rows) == "odd"
    assert majority([rows[0]._replace(label="b"), rows[0]._replace(label="a")]) == "a"


def test_a_task_without_rows_and_a_table_of_few_rows_are_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"train\.parquet: no rows of the task news to use as train"):
        read_labelled(written(tmp_path, curated(tmp_path, "train", {"a": "b"})), "news", False)
    with pytest.raises(Problem, match="too few rows to use as"):
        read_labelled(table(tmp_path / "t.jsonl", GOOD[:2]), "t", False)
