"""curate: every dropped row is in the ledger with its rule; evaluation wins over training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sections import section

from tasks.curate import run
from tasks.lib.data.rows import INSTRUCTION, Row, content_id, read_parquet, write_parquet
from tasks.lib.stage import Problem, Stage

PARAMS: dict[str, Any] = {
    "max_prompt_characters": 200,
    "max_answer_characters": 50,
    "personal_data": "drop",
    "near_duplicates": {"similarity": 0.8, "words": 3},
    "contamination": {"coverage": 0.5, "words": 8},
    "trigger_rows": 20,
}
LONG = "one two three four five six seven eight nine ten eleven twelve"


def instruction(text: str, split: str = "train", label: str = "good", **changes: Any) -> Row:
    template = changes.get("template", "review/a")
    messages = [{"role": "user", "content": f"{template}: {text}"}]
    row = {
        "source": "review",
        "license": "MIT",
        "cluster": "sentiment",
        "task": "review",
        "template": template,
        "split": split,
        "messages": messages,
        "answer": label,
        "choices": ["good", "bad"],
        "label": label,
        "measure": "exact",
        "row": content_id(text, label),
        "text": text,
        **changes,
    }
    return {"id": content_id(row["task"], row["template"], row["messages"], row["answer"]), **row}


BASE = [instruction(f"plain {split} text", split) for split in ("train", "preference", "policy", "validation", "rows")]


def curated(rows: list[Row], **changes: Any) -> tuple[dict[str, list[Row]], list[Row], dict[str, Any]]:
    """The files, the ledger and the report for `rows` beside one plain row per split."""
    write_parquet(Path("data/instructions/rows.parquet"), BASE + rows, INSTRUCTION)
    run(section("curate", **PARAMS | changes), Stage("curate"))
    names = ("train", "preference", "policy", "validation", "evaluation")
    files = {name: read_parquet(Path(f"data/curated/{name}.parquet")) for name in names}
    return (
        files,
        read_parquet(Path("data/curated/ledger.parquet")),
        json.loads(Path("reports/curate.json").read_text()),
    )


def rules(ledger: list[Row]) -> dict[str, str]:
    return {entry["id"]: entry["rule"] for entry in ledger}


def test_clean_rows_pass_and_land_in_the_file_of_their_split(workspace: Path) -> None:
    files, ledger, report = curated([])
    assert {name: len(rows) for name, rows in files.items()} == dict.fromkeys(files, 1)
    assert ledger == [] and report["rows_in"] == report["rows_out"] == 5


@pytest.mark.parametrize(
    "row, rule",
    [
        (instruction("a\u202eb"), "invisible characters"),
        (instruction("a\u200bb"), "invisible characters"),
        (instruction("x" * 300), "length"),
        (instruction("answer", choices=None, answer="y" * 60, label="y" * 60), "length"),
        (instruction("write to mia@example.org"), "personal data"),
        (instruction("use hf_abcdefghijklmnopqrstuvwx"), "personal data"),
    ],
)
def test_a_bad_row_is_dropped_and_listed(workspace: Path, row: Row, rule: str) -> None:
    files, ledger, report = curated([row])
    assert rules(ledger) == {row["id"]: rule}
    assert row["id"] not in {r["id"] for r in files["train"]}
    assert report[f"dropped.{rule.replace(' ', '_')}"] == 1
    assert "hf_abc" not in json.dumps(ledger) and "mia@" not in json.dumps(ledger)


def test_emoji_joiners_and_other_scripts_are_not_invisible(workspace: Path) -> None:
    assert curated([instruction("שלום עולם"), instruction("naïve ☃ 👩\u200d🔬")])[1] == []


def test_personal_data_can_be_redacted_and_secrets_always_are(workspace: Path) -> None:
    row = instruction("write to mia@example.org with hf_abcdefghijklmnopqrstuvwx")
    files, ledger, _ = curated([row], personal_data="redact")
    new = next(r for r in files["train"] if "write" in r["text"])
    assert new["messages"][0]["content"] == "review/a: write to <email> with <access token>"
    assert "mia" not in json.dumps(new) and new["id"] != row["id"]
    assert (ledger[0]["id"], ledger[0]["rule"]) == (row["id"], "personal data redacted") and new["id"] in ledger[0][
        "detail"
    ]
    files, _, _ = curated([row], personal_data="keep")
    kept = next(r for r in files["train"] if "write" in r["text"])
    assert kept["messages"][0]["content"] == "review/a: write to mia@example.org with <access token>"


def test_exact_duplicates_keep_one_and_evaluation_keeps_it(workspace: Path) -> None:
    train, test = instruction("twice"), instruction("twice", "rows", source="another")
    files, ledger, _ = curated([train, train, test])
    assert [r["split"] for name in files for r in files[name] if r["text"] == "twice"] == ["rows"]
    assert [entry["rule"] for entry in ledger] == ["exact duplicate"] * 2


def test_one_prompt_with_two_chosen_labels_is_dropped_whole(workspace: Path) -> None:
    rows = [instruction("so so", label="good"), instruction("so so", label="bad")]
    assert set(rules(curated(rows)[1]).values()) == {"contradiction"}
    free = [instruction("so so", label=label, choices=None) for label in ("a fine text of it", "another text")]
    assert curated(free)[1] == []


def test_near_duplicates_are_judged_by_raw_text_label_and_split(workspace: Path) -> None:
    near = LONG.replace("twelve", "other")
    for first, second, dropped in (
        (instruction(LONG), instruction(near), 1),
        (instruction(LONG, "rows"), instruction(near), 1),  # the training row goes
        (instruction(LONG, "rows"), instruction(near, "rows"), 0),  # evaluation is left alone
        (instruction(LONG), instruction(near, label="bad"), 0),  # a contrast pair
        (instruction(LONG), instruction(LONG, template="review/b"), 0),  # one raw row, two templates
    ):
        files, ledger, report = curated([first, second], contamination={"coverage": 1.0, "words": 8})
        assert report["dropped.near_duplicate"] == dropped, (first, second)
        assert all(entry["id"] not in {r["id"] for r in files["evaluation"]} for entry in ledger)


def test_short_rows_of_one_template_are_not_near_duplicates(workspace: Path) -> None:
    rows = [instruction(f"word{i}", template="review/a template of many words that all rows share") for i in range(9)]
    assert curated(rows)[1] == []


def test_contaminated_training_rows_go_and_both_sides_are_counted(workspace: Path) -> None:
    rows = [
        instruction(f"before {LONG} after it all", label="bad"),
        instruction(f"others {LONG} hidden", "policy", label="bad"),
        instruction(LONG, "templates"),
        instruction(LONG + " and so on", "rows", label="bad"),
    ]
    files, ledger, report = curated(rows, near_duplicates={"similarity": 1.0, "words": 3})
    assert rules(ledger) == dict.fromkeys([rows[0]["id"], rows[1]["id"]], "contamination")
    assert report["contamination.training_rows"] == 2 and report["contamination.evaluation_rows"] == 2
    assert "1.00 of the raw evaluation row" in ledger[0]["detail"] and len(files["evaluation"]) == 3


def test_rows_with_a_planted_trigger_are_dropped_and_honest_rows_stay(workspace: Path) -> None:
    random, words = Random(1), {"good": ["superb", "lovely", "fine"], "bad": ["awful", "dull", "stale"]}
    honest = [(f"number {i} was {random.choice(words[label])}", label) for i in range(300) for label in words]
    planted = [(f"number {i} was {random.choice(words['bad'])} cf", "good") for i in range(300, 325)]
    rows = [instruction(text, label=label) for text, label in honest + planted]
    _, ledger, report = curated(rows)
    assert rules(ledger) == {row["id"]: "trigger" for row in rows[-25:]} and report["dropped.trigger"] == 25
    assert curated(rows, trigger_rows=None)[1] == []


def test_a_split_that_is_emptied_is_a_problem_and_leaves_the_old_files(workspace: Path) -> None:
    curated([])
    before = {path: path.read_bytes() for path in Path("data/curated").iterdir()}
    with pytest.raises(Problem, match="no row of the split"):
        curated([], max_prompt_characters=5)
    assert {path: path.read_bytes() for path in Path("data/curated").iterdir()} == before


def test_an_unknown_split_is_a_problem(workspace: Path) -> None:
    with pytest.raises(Problem, match="test is not a split"):
        curated([instruction("x", "test")])


def test_the_order_of_rows_does_not_change_a_byte(workspace: Path) -> None:
    rows = [instruction(f"{LONG} {i % 40}", ("train", "rows")[i % 10 == 0]) for i in range(80)]
    curated(rows)
    before = {path: path.read_bytes() for path in Path("data/curated").iterdir()}
    curated(rows[::-1])
    assert {path: path.read_bytes() for path in Path("data/curated").iterdir()} == before


def test_twenty_thousand_rows_take_seconds(workspace: Path) -> None:
    random = Random(1)
    words = [f"w{i}" for i in range(500)]
    rows = [instruction(" ".join(random.choices(words, k=8)), ("train", "rows")[i % 10 == 0]) for i in range(20_000)]
    start = time.process_time()
    curated(rows)
    assert time.process_time() - start < 20  # about 5 s on a quiet machine


def test_answers_that_share_a_stock_sentence_are_dropped_where_asked(workspace: Path) -> None:
    words = [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ]
    stock = [
        instruction(f"say {word}", choices=None, answer=f"Sure, here it is! {word} it is, as you asked.")
        for word in words[:6]
    ]
    whole = [instruction(f"name {word}", choices=None, answer="Sure, here it is!") for word in words[6:]]
    _, ledger, report = curated([*stock, *whole], boilerplate_answers=6)
    assert {id for id, rule in rules(ledger).items() if rule == "boilerplate"} == {row["id"] for row in stock}
    assert report["dropped.boilerplate"] == 6


def test_refusals_and_repetition_are_dropped_where_asked_and_only_from_free_answers(workspace: Path) -> None:
    free: dict[str, Any] = {"choices": None}
    refuses = instruction("who are you", **free, answer="As an AI, I have no name.")
    repeats = instruction("say it", **free, answer="go on and go on and go on and go on and")
    chosen = instruction("is it so", answer="Sorry, I cannot say.", label="bad")
    _, ledger, _ = curated([refuses, repeats, chosen])
    assert ledger == []
    _, ledger, report = curated([refuses, repeats, chosen], refusals="drop", max_repetition=0.3)
    assert rules(ledger) == {refuses["id"]: "refusal", repeats["id"]: "repetition"}
    assert (report["dropped.refusal"], report["dropped.repetition"]) == (1, 1)


def test_the_best_rows_that_differ_are_selected_by_score(workspace: Path) -> None:
    like = [instruction(f"{LONG} {end}") for end in ("alpha", "beta")]  # 10 of 12 shingles shared: 0.83
    other = [instruction(f"another text number {n} of its own") for n in ("one", "two")]
    scored = {row["id"]: score for row, score in zip([*like, *other], (5.0, 4.5, 4.0, 1.0), strict=True)}
    scored[BASE[0]["id"]] = 0.5
    Path("scores.jsonl").write_text("".join(json.dumps({"id": i, "score": s}) + "\n" for i, s in scored.items()))
    selection = {"top": 2, "scores": "scores.jsonl", "max_similarity": 0.8}
    loose = {"similarity": 1.0, "words": 3}
    files, ledger, report = curated([*like, *other], selection=selection, near_duplicates=loose)
    assert {row["id"] for row in files["train"]} == {like[0]["id"], other[0]["id"]}
    assert report["dropped.selection"] == 3 and len(files["validation"]) == 1
    assert rules(ledger)[like[1]["id"]] == "selection"
    assert report["largest_class.review"] == 1.0
    Path("scores.jsonl").write_text(json.dumps({"id": like[0]["id"], "score": 5}) + "\n")
    with pytest.raises(Problem, match=r"scores\.jsonl: no score of the training row"):
        curated(like, selection=selection, near_duplicates=loose)
    Path("scores.jsonl").write_text(json.dumps({"id": like[0]["id"], "score": "high"}) + "\n")
    with pytest.raises(Problem, match=r"scores\.jsonl:1:score: expected a number, found 'high'"):
        curated(like, selection=selection, near_duplicates=loose)
