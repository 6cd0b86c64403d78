"""check: judge the pipeline's rows against a data contract; whatever trains on them depends on its report.

Reads   what the contract's module names in READS (data/curated, data/candidates, data/preferences);
        with instructions the raw rows too, with sft_inputs models/base, with rankings models/sft: the tokenizer
Writes  reports/check/<contract>.json, reports/check/<contract>.html
Run     python -m tasks.check instructions        (or sft_inputs, candidates, rankings)
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.data.sources import find_sources
from tasks.lib.stage import PARAMS_FILE, Problem, Stage, main, read_yaml

TRAINERS = {"sft_inputs": "sft", "rankings": "dpo"}  # contract: the stage whose trainer.max_length the rows should fit


class Params(BaseModel, extra="forbid"):
    """The contracts have no parameters: what good data is does not change from run to run."""


def run(params: Params, stage: Stage) -> None:
    check(sys.argv[1:])


def check(arguments: list[str]) -> None:
    from data_contracts.contract import CONTRACTS, check_rows, module_of

    if len(arguments) != 1:
        raise Problem(f"check: expected one contract of {', '.join(CONTRACTS)}, found {len(arguments)} arguments")
    contract = arguments[0]
    files: dict[str, Path] = module_of(contract).READS
    tables = {name: read_parquet(path) for name, path in files.items()}
    document = read_yaml(PARAMS_FILE)
    limit = None
    if contract in TRAINERS:
        limit = document[TRAINERS[contract]]["trainer"].get("max_length")
    add_derived(contract, tables, document, limit)
    report = check_rows(contract, tables, partial(places, document, tables, files))
    report.write(Path("reports/check"))
    problem = report.problem()
    if problem:
        if report.violated[0].field == "length":
            problem += f"; shorten them or raise {TRAINERS[contract]}.trainer.max_length ({limit})"
        raise Problem(f"{problem}; see reports/check/{contract}.html")
    print(f"check  {contract}: {len(report.results)} claims hold for {report.rows} rows")


def add_derived(contract: str, tables: dict[str, list[Row]], document: dict[str, Any], limit: int | None) -> None:
    """Add the tables that are in no file: raw rows as the sources are read, training rows as tokens."""
    from data_contracts import instruction_tokens, ranking_tokens

    if contract == "instructions":
        tables["raw"] = [row for _, row in raw_rows(document)]
    if contract == "sft_inputs":
        rows = tables["train"] + tables["validation"]
        tables["instruction_tokens"] = instruction_tokens.rows_of(rows, Path("models/base"), limit)
    if contract == "rankings":
        rows = tables["train"] + tables["heldout"]
        tables["ranking_tokens"] = ranking_tokens.rows_of(rows, Path("models/sft"), limit)


def raw_rows(document: dict[str, Any]) -> list[tuple[str, Row]]:
    """The rows of all sources as they were read, each with its place."""
    from data_contracts import raw

    render = document["render"]
    rows: list[tuple[str, Row]] = []
    for path in find_sources(Path(render["sources"])):
        rows += raw.rows_of(path, render)
    return rows


def places(
    document: dict[str, Any], tables: dict[str, list[Row]], files: dict[str, Path], ids: set[str]
) -> dict[str, str]:
    """Where the rows of these ids are (id -> file:row): in what people handed in, else in the pipeline's own file.

    The sources are read again, which only a violation costs.
    """
    place_of: dict[str, str] = {}
    raw_id = {row["id"]: row["row"] for row in tables.get("preference", ())}
    for name, path in files.items():
        for number, row in enumerate(tables[name], 1):
            if row["id"] in ids:
                place_of[row["id"]] = f"{path}:{number}"
                # a candidate names its instruction, of the split preference; an instruction its raw row
                raw_id[row["id"]] = row.get("row") or raw_id.get(row.get("instruction", ""), "")
    if "ranking_tokens" in tables:  # the prompts of rankings came from anywhere
        return place_of
    place_of_raw = {row["id"]: place for place, row in raw_rows(document)}
    for id in ids:
        raw = raw_id.get(id, id)  # an id that is in none of the files is that of a raw row
        if raw in place_of_raw:
            place_of[id] = place_of_raw[raw]
    return place_of


if __name__ == "__main__":
    main(__file__, Params, run)
