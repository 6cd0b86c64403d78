"""check: judge the line's rows against a data contract; whatever trains on them depends on its report.

Reads   what the contract's module names in READS (data/curated, data/candidates, data/preferences)
Writes  reports/check/<contract>.json, reports/check/<contract>.html
Run     python -m tasks.check instructions        (or evaluation, candidates, rankings)
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel

from tasks.lib.data.rows import read_parquet
from tasks.lib.stage import Problem, Stage, main


class Params(BaseModel, extra="forbid"):
    """The contracts have no parameters: what good data is does not change from run to run."""


def run(params: Params, stage: Stage) -> None:
    check(sys.argv[1:])


def check(arguments: list[str]) -> None:
    from data_contracts.contract import CONTRACTS, check_rows, module_of

    if len(arguments) != 1:
        raise Problem(
            f"check: expected one contract of {', '.join(CONTRACTS)}, found {len(arguments)} arguments"
        )
    module = module_of(arguments[0])
    report = check_rows(arguments[0], {name: read_parquet(path) for name, path in module.READS.items()})
    report.write(Path("reports/check"))
    if problem := report.problem():
        raise Problem(f"{problem}; see reports/check/{arguments[0]}.html")
    print(f"check  {arguments[0]}: {len(report.results)} claims hold for {report.rows} rows")


if __name__ == "__main__":
    main(__file__, Params, run)
