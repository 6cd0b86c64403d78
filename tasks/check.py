"""check: judge the line's rows against a data contract; whatever trains on them depends on its report.

Reads   what the contract's module names in READS (data/curated, data/candidates, data/preferences);
        with instructions the raw rows too, with evaluation models/base, with rankings models/sft: the tokenizer
Writes  reports/check/<contract>.json, reports/check/<contract>.html
Run     python -m tasks.check instructions        (or evaluation, candidates, rankings)
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.data.sources import find_sources
from tasks.lib.settings.check import Params
from tasks.lib.stage import PARAMS_FILE, Problem, Stage, main, read_yaml

CONTEXT = -100  # the label of a token that is not trained
LIMITS = {"evaluation": "sft.trainer.max_length", "rankings": "dpo.trainer.max_length"}


def run(params: Params, stage: Stage) -> None:
    check(sys.argv[1:])


def check(arguments: list[str]) -> None:
    from data_contracts.contract import CONTRACTS, check_rows, module_of

    if len(arguments) != 1:
        raise Problem(f"check: expected one contract of {', '.join(CONTRACTS)}, found {len(arguments)} arguments")
    contract = arguments[0]
    module = module_of(contract)
    tables = {name: read_parquet(path) for name, path in module.READS.items()}
    document = read_yaml(PARAMS_FILE)
    limit = None
    if contract == "instructions":
        tables["raw"] = [row for _, row in raw_rows(document)]
    if contract == "evaluation":
        limit = document["sft"]["trainer"].get("max_length")
        tables["instruction_tokens"] = instruction_tokens([*tables["train"], *tables["validation"]], limit)
    if contract == "rankings":
        limit = document["dpo"]["trainer"].get("max_length")
        tables["ranking_tokens"] = ranking_tokens([*tables["train"], *tables["heldout"]], limit)
    report = check_rows(contract, tables, partial(places, document, tables, module.READS))
    report.write(Path("reports/check"))
    if problem := report.problem():
        if report.violated[0].field == "length":
            problem += f"; shorten them or raise {LIMITS[contract]} ({limit})"
        raise Problem(f"{problem}; see reports/check/{contract}.html")
    print(f"check  {contract}: {len(report.results)} claims hold for {report.rows} rows")


def raw_rows(document: dict[str, Any]) -> list[tuple[str, Row]]:
    """The rows of all sources as they were read, each with its place."""
    from data_contracts import raw

    render = document["render"]
    return [row for path in find_sources(Path(render["sources"])) for row in raw.rows_of(path, render)]


def instruction_tokens(rows: list[Row], max_length: int | None) -> list[Row]:
    """Instructions as SFT trains on them."""
    from tasks.lib.models.chat import all_example_ids, load_tokenizer

    tokenizer = load_tokenizer("models/base")
    examples = all_example_ids(tokenizer, rows, "data/curated")
    return [
        {
            "id": row["id"],
            "roles": " ".join(message["role"] for message in row["messages"]),
            "input_ids": ids,
            "labels": [i if trained else CONTEXT for i, trained in zip(ids, is_answer, strict=True)],
            **{"eos": tokenizer.eos_token_id, "max_length": max_length},
        }
        for row, (ids, is_answer) in zip(rows, examples, strict=True)
    ]


def ranking_tokens(rows: list[Row], max_length: int | None) -> list[Row]:
    """Rankings as the reward model and DPO train on them: a prompt and its answers become tokens once."""
    from tasks.lib.models.chat import all_answer_ids, all_prompt_ids, load_tokenizer

    tokenizer = load_tokenizer("models/sft")
    shown = {str(row["prompt"]): row["prompt"] for row in rows}
    prompts = dict(zip(shown, all_prompt_ids(tokenizer, list(shown.values())), strict=True))
    given = list(dict.fromkeys(answer for row in rows for answer in row["answers"]))
    answers = dict(zip(given, all_answer_ids(tokenizer, given), strict=True))
    return [
        {
            "id": row["id"],
            "prompt_ids": prompts[str(row["prompt"])],
            "answers_ids": [answers[answer] for answer in row["answers"]],
            **{"ranks": row["ranks"], "eos": tokenizer.eos_token_id, "max_length": max_length},
        }
        for row in rows
    ]


def places(
    document: dict[str, Any], tables: dict[str, list[Row]], files: dict[str, Path], asked: set[str]
) -> dict[str, str]:
    """Where the rows of some ids stand (id -> file:row): in what people handed in, else in the line's own file.

    The sources are read again, which only a violation costs.
    """
    found: dict[str, str] = {}
    raw_row = {row["id"]: row["row"] for row in tables.get("preference", ())}
    for name, table in tables.items():
        for number, row in enumerate(table, 1):
            if row["id"] in asked and name in files:
                found[row["id"]] = f"{files[name]}:{number}"
                raw_row[row["id"]] = row.get("row") or raw_row.get(row.get("instruction", ""), "")
    if "ranking_tokens" in tables:  # their prompts came from anywhere
        return found
    where = {row["id"]: place for place, row in raw_rows(document)}
    return found | {id: where[raw_row.get(id, id)] for id in asked if raw_row.get(id, id) in where}


if __name__ == "__main__":
    main(__file__, Params, run)
