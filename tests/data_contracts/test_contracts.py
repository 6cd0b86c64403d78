"""Each contract accepts its example row and names the rows that break a claim, by id and field only."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_contracts.contract import CONTRACTS, Report, check_rows, module_of
from tasks.lib.data.rows import write_parquet
from tasks.lib.stage import Problem

SECRET = "the text of a row"


def example(contract: str, **changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(module_of(contract).EXAMPLE), **changes}


def judged(contract: str, rows: list[dict[str, Any]], **others: list[dict[str, Any]]) -> Report:
    return check_rows(contract, {module_of(contract).JUDGED[0]: rows, **others})


def violated(report: Report) -> dict[str, list[str]]:
    return {result.claim: result.ids for result in report.violated}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_contract_accepts_its_own_example(contract: str) -> None:
    row = example(contract)
    pa.Table.from_pylist([row], schema=module_of(contract).SCHEMA)
    report = judged(contract, [row])
    assert not report.violated and report.problem() is None
    assert report.rows == 1


USER = {"role": "user", "content": SECRET}
ANSWER = {"role": "assistant", "content": SECRET}
BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("instructions", {"id": "A"}, "ids are content hashes"),
    ("instructions", {"split": "test"}, "splits are known"),
    ("instructions", {"license": "whatever"}, "licences are known"),
    ("instructions", {"messages": [USER, ANSWER]}, "roles alternate and the user speaks last"),
    ("instructions", {"messages": [USER, USER]}, "roles alternate and the user speaks last"),
    ("instructions", {"messages": []}, "roles alternate and the user speaks last"),
    ("instructions", {"messages": [{"role": "user", "content": "  "}]}, "no message is empty"),
    ("instructions", {"answer": " "}, "no answer is empty"),
    ("instructions", {"label": "other"}, "the label is one of the choices"),
    ("instructions", {"measure": "number"}, "the label or the answer is right by the measure of the task"),
    ("instructions", {"choices": ["good"]}, "there are at least two choices, or none"),
    ("instructions", {"choices": ["good", "bad", "good"]}, "choices differ"),
    ("sft_inputs", {"split": "train"}, "splits are known"),
    ("candidates", {"answers": ["one"]}, "there are at least two answers"),
    ("candidates", {"model": "gpt"}, "the model is a SHA-256"),
    ("candidates", {"sampling": "[]"}, "sampling parameters are a JSON object"),
    ("candidates", {"prompt": [USER, ANSWER]}, "roles alternate and the user speaks last"),
    ("rankings", {"answers": [SECRET], "ranks": [0]}, "there are at least two answers"),
    ("rankings", {"ranks": [0, 1, 2]}, "every answer has a rank"),
    ("rankings", {"ranks": [0, 1, 3, 3]}, "ranks start at 0 and have no gaps"),
    ("rankings", {"ranks": [1, 2, 3, 4]}, "ranks start at 0 and have no gaps"),
    ("rankings", {"answers": [SECRET, SECRET, "b", "c"]}, "the answers of a prompt differ"),
    ("rankings", {"annotator": " "}, "the annotator has a name"),
    ("rankings", {"license": "unknown"}, "licences are known"),
    ("instruction_tokens", {"roles": "user user"}, "roles alternate and the user speaks last (as tokens)"),
    ("instruction_tokens", {"labels": [-100, 405]}, "every token has a label"),
    ("instruction_tokens", {"labels": [-100] * 8}, "at least one token is trained"),
    ("instruction_tokens", {"labels": [-100] * 7 + [7]}, "a label is its token or context"),
    (  # cut at max_length: the answer has begun, its EOS is gone
        "instruction_tokens",
        {"input_ids": [3, 319, 25, 262, 286, 4, 405], "labels": [-100] * 6 + [405]},
        "the answer is whole: a trained EOS ends it",
    ),
    ("instruction_tokens", {"max_length": 7}, "at least 95% of the rows fit max_length"),
    (
        "ranking_tokens",
        {"answers_ids": [[5, 1], [5, 1]], "ranks": [0, 1]},
        "answers of different rank differ as tokens",
    ),
    ("ranking_tokens", {"answers_ids": [[5], [6, 1]]}, "every answer is whole: an EOS ends it"),
    ("raw", {"text": " "}, "a row has a text"),
    ("raw", {"text": "caf\ufffd"}, "texts were decoded as what they are (no U+FFFD)"),
]


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_broken_row_is_named_by_id_and_never_quoted(contract: str) -> None:
    cases = [(changes, claim) for name, changes, claim in BROKEN if name == contract]
    rows = [{**example(contract, id=f"{i:016x}"), **changes} for i, (changes, _) in enumerate(cases)]
    report = judged(contract, rows)
    for row, (_, claim) in zip(rows, cases, strict=True):
        assert row["id"] in violated(report)[claim], claim
    problem = report.problem()
    assert problem and f"data contract {contract} is violated" in problem and report.violated[0].ids[0] in problem
    assert SECRET not in problem + json.dumps([result.ids for result in report.results])


def test_equal_tokens_of_equal_rank_are_a_tie_and_no_pair() -> None:
    row = example("ranking_tokens", answers_ids=[[5, 1], [5, 1], [6, 1]], ranks=[0, 0, 1])
    assert not judged("ranking_tokens", [row]).violated


def test_one_long_row_in_twenty_is_left_out_of_training_and_two_are_a_mistake() -> None:
    rows = [example("instruction_tokens", id=f"{i:016x}") for i in range(20)]
    rows[0]["max_length"] = 7
    assert not judged("instruction_tokens", rows).violated
    rows[1]["max_length"] = 7
    assert violated(judged("instruction_tokens", rows)) == {
        "at least 95% of the rows fit max_length": [rows[0]["id"], rows[1]["id"]]
    }


def test_three_quarters_of_the_rankings_may_be_too_long_and_no_more() -> None:
    rows = [example("ranking_tokens", id=f"{i:016x}") for i in range(4)]
    rows[0]["max_length"] = rows[1]["max_length"] = rows[2]["max_length"] = 8
    assert not judged("ranking_tokens", rows).violated
    rows[3]["max_length"] = 8
    assert list(violated(judged("ranking_tokens", rows))) == ["at least 25% of the rankings fit max_length"]


def test_raw_rows_are_judged_among_the_rows_of_their_source() -> None:
    def row(number: int, label: str, **changes: Any) -> dict[str, Any]:
        numbered = {"id": f"{number:016x}", "content": f"{number:016x}", "label": label}
        return example("raw", **(numbered | changes))

    fine = [row(i, "billing" if i % 2 else "technical") for i in range(60)]
    assert not judged("raw", fine).violated
    assert violated(judged("raw", [*fine, row(60, "biling")])) == {
        "no label occurs once only (is it misspelt?)": [f"{60:016x}"]
    }
    two_labels = [row(i, "billing", content=f"{i - 60:016x}") for i in range(60, 64, 2)]
    assert set(violated(judged("raw", [*fine, *two_labels]))) == {"a text has one label"}
    copies = [row(i, "billing") for i in range(1, 9, 2)]
    assert set(violated(judged("raw", [*fine, *copies]))) == {"rows stand once"}
    collapsed = [row(i, "billing") for i in range(39)] + [row(39, "technical"), row(40, "technical")]
    assert violated(judged("raw", collapsed)) == {"no label makes up nearly all rows of a source": ["tickets"]}


def test_ids_are_unique_and_a_prompt_has_one_split() -> None:
    train, policy = example("instructions"), example("instructions", split="policy")
    report = judged("instructions", [train, policy])
    assert violated(report) == {
        "ids are unique": [train["id"]],
        "a prompt stands in one split only": [train["id"]],
    }


def test_a_collapsed_class_is_named_by_its_task() -> None:
    rows = [
        example("instructions", id=f"{i:016x}", label=label, task=task)
        for task, labels in {"fine": ["good", "bad"] * 15, "collapsed": ["good"] * 30}.items()
        for i, label in enumerate(labels, 100 * len(task))
    ]
    assert violated(judged("instructions", rows)) == {"no choice makes up nearly all labels of a task": ["collapsed"]}


def test_evaluation_must_be_new_in_the_way_its_split_says() -> None:
    seen = example("instructions", template="review/phrasing_1")
    new = example("sft_inputs")
    assert not judged("sft_inputs", [new], train=[seen]).violated
    cases = {
        "no id is seen in training": {"id": seen["id"]},
        "no row is seen in training": {"row": seen["row"]},
        "no prompt is seen in training": {"messages": seen["messages"]},
        "no held-out template is seen in training": {"template": seen["template"]},
        "no held-out cluster is seen in training": {"split": "clusters"},
        "new rows are asked through templates that training sees": {"split": "rows"},
    }
    rows = {claim: {**new, "id": f"{i:016x}", **changes} for i, (claim, changes) in enumerate(cases.items())}
    found = violated(judged("sft_inputs", list(rows.values()), train=[seen]))
    assert found == {claim: [row["id"]] for claim, row in rows.items()}


def test_prompts_are_equal_whatever_their_case_and_spacing() -> None:
    seen, new = example("instructions"), example("sft_inputs")
    new["messages"][0]["content"] = "  " + seen["messages"][0]["content"].upper()
    assert "no prompt is seen in training" in violated(judged("sft_inputs", [new], train=[seen]))


def test_an_annotator_ranks_answers_once_and_a_prompt_has_one_split() -> None:
    first, again = example("rankings"), example("rankings", id="0" * 16)
    claim = "an annotator ranks the same answers to a prompt once"
    assert set(violated(judged("rankings", [first, again]))) == {claim}
    another_pair = {**again, "answers": ["x", "y"], "ranks": [0, 1]}
    assert not violated(judged("rankings", [first, another_pair]))
    other = example("rankings", id="1" * 16, annotator="ben")
    assert not judged("rankings", [first, other]).violated
    assert set(violated(judged("rankings", [first], heldout=[other]))) == {"a prompt stands in one split only"}


def test_no_evaluation_prompt_is_annotated() -> None:
    prompt = example("sft_inputs")["messages"]
    for contract in ("candidates", "rankings"):
        report = judged(contract, [example(contract, prompt=prompt)], evaluation=[example("sft_inputs")])
        assert set(violated(report)) == {"no prompt is an evaluation prompt"}


def test_candidates_answer_preference_instructions() -> None:
    row = example("candidates", instruction="0" * 16)
    report = judged("candidates", [row], preference=[example("instructions")])
    assert set(violated(report)) == {"the instruction is one of the split preference"}


def test_many_violations_are_counted_quickly_and_a_few_named() -> None:
    rows = [example("candidates", id=f"{i:016x}", answers=["one"]) for i in range(3000)]
    result = next(r for r in judged("candidates", rows).violated if r.field == "answers")
    assert (result.violations, result.rows, len(result.ids)) == (3000, 3000, 20)


def test_files_are_checked_strictly(tmp_path: Path) -> None:
    row, module = example("rankings"), module_of("rankings")
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(row) + "\n")
    assert not check_rows("rankings", [good]).violated
    write_parquet(tmp_path / "good.parquet", [row], module.SCHEMA)
    assert not check_rows("rankings", [tmp_path / "good.parquet"]).violated
    for change, message in (
        ({"ranks": ["a", "b"]}, "bad.jsonl:1:ranks: expected list<"),
        ({"license": None}, "bad.jsonl:1:license: expected string, found null"),
    ):
        bad.write_text(json.dumps({**row, **change}) + "\n")
        with pytest.raises(Problem, match=message):
            check_rows("rankings", [bad])
    bad.write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": "b", "annotator": " "}) + "\n")
    report = check_rows("rankings", [bad])
    assert f"ids b ({bad}:2)" in (report.problem() or "")
    report.write(tmp_path)
    assert f"b ({bad}:2)" in (tmp_path / "rankings.html").read_text()
    bad.write_text(json.dumps({k: v for k, v in row.items() if k != "ranks"}) + "\n")
    with pytest.raises(Problem, match=r"bad\.jsonl:1:ranks: expected .*, found no such field"):
        check_rows("rankings", [bad])


def test_unknown_contracts_and_no_rows_are_problems() -> None:
    with pytest.raises(Problem, match="expected a contract of raw, instructions"):
        check_rows("nothing", {})
    with pytest.raises(Problem, match="data contract rankings: expected rows, found none"):
        check_rows("rankings", {"train": []})


def test_the_report_is_self_contained_and_the_same_twice(tmp_path: Path) -> None:
    report = judged("instructions", [example("instructions", split="<b>", answer=" ")])
    report.write(tmp_path / "a")
    report.write(tmp_path / "b")
    for name in ("instructions.json", "instructions.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = (tmp_path / "a" / "instructions.html").read_text()
    assert "http" not in page and "<script" not in page and "no answer is empty" in page
    assert json.loads((tmp_path / "a" / "instructions.json").read_text())["holds"] is False
