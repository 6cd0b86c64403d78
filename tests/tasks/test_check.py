"""check: a violated contract stops the pipeline with one line and leaves a report that names the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import instruction, write_model

from data_contracts.contract import module_of
from tasks.check import check
from tasks.lib.data.rows import Row, write_parquet
from tasks.lib.stage import Problem

ROOT = Path(__file__).resolve().parents[2]


PARAMS = """seed: 1
threads: 1
check: {}
render: {raw: raw, sources: raw, commercial: true}
sft: {trainer: {max_length: 64}}
dpo: {trainer: {max_length: 64}}
"""


def tables(contract: str, **rows: list[Row]) -> None:
    module = module_of(contract)
    Path("params.yaml").write_text(PARAMS)
    write_model(Path("models/sft"))
    write_model(Path("models/base"))
    for name, path in module.READS.items():
        schema = module.SCHEMA if name in module.JUDGED else module_of("instructions").SCHEMA
        write_parquet(path, rows.get(name, []), schema)


def test_a_contract_that_holds_writes_its_report(workspace: Path) -> None:
    tables("rankings", train=[module_of("rankings").EXAMPLE])
    check(["rankings"])
    report = json.loads(Path("reports/check/rankings.json").read_text())
    assert report["holds"] is True and report["rows"] == 1
    assert Path("reports/check/rankings.html").read_text().startswith("<!doctype html>")


def test_a_violated_contract_is_one_line_that_names_contract_claim_and_ids(workspace: Path) -> None:
    row = {**module_of("rankings").EXAMPLE, "ranks": [0, 2, 2, 3]}
    tables("rankings", train=[row])
    with pytest.raises(Problem) as caught:
        check(["rankings"])
    message = str(caught.value)
    assert "data contract rankings is violated: ranks start at 0 and have no gaps" in message
    assert "expect_column_pair_values_to_be_equal" in message and row["id"] in message and "\n" not in message
    report = json.loads(Path("reports/check/rankings.json").read_text())
    assert report["holds"] is False
    assert [r["ids"] for r in report["results"] if r["violations"]] == [[row["id"]]]


def test_training_rows_are_judged_as_tokens_and_named_by_their_place_in_the_source(workspace: Path) -> None:
    folder = Path("raw/tickets")
    folder.mkdir(parents=True)
    (folder / "rows.csv").write_text("text,label\nmy card was charged twice,billing\n")
    (folder / "source.yaml").write_text(
        "{file: tickets/rows.csv, format: csv, license: CC0-1.0, cluster: c, task: t, templates: t,"
        " fields: {text: str, label: str}}"
    )
    seen = instruction(0) | {"template": "t/a"}
    evaluated = [module_of("sft_inputs").EXAMPLE]
    tables("sft_inputs", evaluation=evaluated, train=[seen])
    check(["sft_inputs"])
    claims = {r["claim"]: r["rows"] for r in json.loads(Path("reports/check/sft_inputs.json").read_text())["results"]}
    assert claims["the answer is whole: a trained EOS ends it"] == 1
    Path("params.yaml").write_text(PARAMS.replace("max_length: 64", "max_length: 9"))
    [(_, raw)] = module_of("raw").read(folder / "source.yaml")
    write_parquet(module_of("sft_inputs").READS["train"], [seen | {"row": raw["id"]}], module_of("instructions").SCHEMA)
    advice = r"shorten them or raise sft\.trainer\.max_length \(9\)"
    with pytest.raises(Problem, match=rf"rows fit max_length .*\(raw/tickets/rows\.csv:2\); {advice}"):
        check(["sft_inputs"])


def test_answers_that_are_the_same_tokens_are_no_pair(workspace: Path) -> None:
    row = {**module_of("rankings").EXAMPLE, "answers": ["good", "good ", "bad"], "ranks": [0, 1, 2]}
    tables("rankings", train=[row])
    with pytest.raises(Problem, match=r"answers of different rank differ as tokens .* 1 of 1 rows"):
        check(["rankings"])


def test_missing_data_and_wrong_arguments_are_problems(workspace: Path) -> None:
    with pytest.raises(Problem, match=r"rows\.parquet does not exist"):
        check(["instructions"])
    for arguments in ([], ["nothing"], ["instructions", "rankings"]):
        with pytest.raises(Problem, match=r"expected (a|one) contract of raw, instructions, sft_inputs"):
            check(arguments)


def test_the_module_exits_with_status_1_and_one_line(workspace: Path) -> None:
    Path("params.yaml").write_text("seed: 1\nthreads: 1\ncheck: {}\n")
    result = subprocess.run(
        [sys.executable, "-m", "tasks.check", "nothing"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("anneal: expected a contract of") and result.stderr.count("\n") == 1
