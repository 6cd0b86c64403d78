"""Judge rows against a data contract. Results name rows by id, place and field, never by text."""

from __future__ import annotations

import gc
import html
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tasks.lib.data.privacy import excerpt
from tasks.lib.data.rows import Row, format_of, read_parquet, read_table
from tasks.lib.stage import Problem, replaced, write_json

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

    from data_contracts.columns import Judgement

CONTRACTS = (
    *("raw", "instructions", "evaluation", "candidates", "rankings"),
    *("instruction_tokens", "ranking_tokens"),
)
NAMED = 20  # ids that a result names
EXACT = 1000  # with more violations than these, ids are looked for among the first rows only


@dataclass(frozen=True)
class Result:
    """How one claim fared."""

    claim: str
    expectation: str
    field: str
    rows: int
    violations: int
    ids: list[str]  # the first ones
    places: list[str]  # where these stand in what people handed in (file:row), "" where that is not known

    def named(self, count: int) -> list[str]:
        """The first `count` rows: id (file:row)."""
        pairs = zip(self.ids[:count], self.places, strict=False)
        return [f"{id} ({place})" if place else id for id, place in pairs]


@dataclass(frozen=True)
class Report:
    """The results of one contract."""

    contract: str
    rows: int
    results: list[Result]

    @property
    def violated(self) -> list[Result]:
        return [result for result in self.results if result.violations]

    def problem(self) -> str | None:
        """One line that names contract, claim, field and rows, or None when all holds."""
        if not self.violated:
            return None
        worst = self.violated[0]
        more = f"; {len(self.violated) - 1} more claims are violated" if len(self.violated) > 1 else ""
        return (
            f"data contract {self.contract} is violated: {worst.claim}"
            f" ({worst.expectation}, field {worst.field}):"
            f" {worst.violations} of {worst.rows} rows, ids {', '.join(worst.named(5)) or 'unknown'}{more}"
        )

    def write(self, folder: Path) -> None:
        """Write <contract>.json and a self-contained <contract>.html."""
        content = {
            "contract": self.contract,
            "holds": not self.violated,
            "rows": self.rows,
            "results": [asdict(result) for result in self.results],
        }
        write_json(folder / f"{self.contract}.json", content)
        with replaced(folder / f"{self.contract}.html") as temporary:
            temporary.write_text(_page(self), encoding="utf-8")


def module_of(contract: str) -> ModuleType:
    """The module of a contract; an unknown name is a Problem."""
    if contract not in CONTRACTS:
        raise Problem(f"expected a contract of {', '.join(CONTRACTS)}, found {excerpt(contract)}")
    gc.disable()  # the import of Great Expectations takes seconds, a fifth of them to look for garbage
    try:
        return import_module(f"data_contracts.{contract}")
    finally:
        gc.enable()


def check_rows(
    contract: str,
    rows: Mapping[str, list[Row]] | Sequence[Path],
    locate: Callable[[set[str]], dict[str, str]] | None = None,
) -> Report:
    """Judge `rows` against a contract: tables by name as in the module's READS, or files to read strictly.

    `locate` says where the rows of some ids stand (id -> file:row); of files that is known. Of files, only
    claims about the rows themselves are judged, not those about other tables. Zero rows are a Problem.
    """
    warnings.filterwarnings("ignore", module="great_expectations")
    module = module_of(contract)
    if isinstance(rows, Mapping):
        tables = dict(rows)
    else:
        read = getattr(module, "read", None) or partial(read_rows, schema=module.SCHEMA)
        listed = [(place, row) for path in rows for place, row in read(path)]
        tables = {module.JUDGED[0]: [row for _, row in listed]}
        locate = locate or partial(_places, listed)
    count = sum(len(tables.get(name, ())) for name in module.JUDGED)
    if not count:
        raise Problem(f"data contract {contract}: expected rows, found none")
    results = [result for judgement in module.judgements(tables) for result in _judge(judgement)]
    asked = {id for result in results for id in result.ids}
    places = locate(asked) if locate and asked else {}
    results = [replace(each, places=[places.get(id, "") for id in each.ids]) for each in results]
    return Report(contract, count, results)


def _places(listed: Sequence[tuple[str, Row]], asked: set[str]) -> dict[str, str]:
    return {row["id"]: place for place, row in reversed(listed) if row["id"] in asked}


def read_rows(path: Path, schema: pa.Schema) -> list[tuple[str, Row]]:
    """The rows of a file in any format of the row reader, with exactly the fields and types of `schema`.

    Each with its place, file:row.
    """
    if format_of(path) == "parquet":
        return [(f"{path}:{number}", row) for number, row in enumerate(read_parquet(path, schema.names), 1)]
    rows = []
    for number, row in read_table(path):
        where = f"{path}:{number}"
        for name in schema.names:
            if name not in row:
                raise Problem(f"{where}:{name}: expected {schema.field(name).type}, found no such field")
            if row[name] is None and not schema.field(name).nullable:
                raise Problem(f"{where}:{name}: expected {schema.field(name).type}, found null")
            try:
                pa.array([row[name]], schema.field(name).type)
            except (pa.ArrowException, TypeError):
                kind = schema.field(name).type
                raise Problem(f"{where}:{name}: expected {kind}, found {excerpt(row[name])}") from None
        rows.append((where, {name: row[name] for name in schema.names}))
    return rows


def _judge(judgement: Judgement) -> list[Result]:
    """Two passes: counts for all claims, which is quick, then the ids of those that are violated."""
    counted = _validated(judgement.frame, judgement.claims, "BASIC")
    results = []
    for claim, outcome in counted.items():
        if outcome.exception_info.get("exception_message"):
            raise RuntimeError(f"{claim}: {outcome.exception_info['exception_message']}")
        expectation = judgement.claims[claim]
        count = 0 if outcome.success else int(outcome.result.get("unexpected_count") or 1)
        ids = _ids(judgement.frame, claim, expectation, count) if count else []
        field = getattr(expectation, "column", None) or getattr(expectation, "column_A", None)
        field = field or ", ".join(getattr(expectation, "column_list", ()))
        results.append(Result(claim, outcome.expectation_config.type, field, len(judgement.frame), count, ids, []))
    return results


def _ids(frame: pd.DataFrame, claim: str, expectation: Expectation, count: int) -> list[str]:
    """The first ids that violate a claim; naming one takes 0.3 ms, so not all are asked for."""
    for size in (len(frame),) if count <= EXACT else (EXACT, 10 * EXACT, len(frame)):
        outcome = _validated(frame.head(size), {claim: expectation}, "COMPLETE")[claim]
        found = [str(entry["id"]) for entry in outcome.result.get("unexpected_index_list") or []]
        if found:
            return list(dict.fromkeys(found))[:NAMED]
    return []


def _validated(frame: pd.DataFrame, claims: Mapping[str, Expectation], detail: str) -> dict[str, Any]:
    """Great Expectations' outcome of each claim."""
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    named = [each.copy(update={"meta": {"claim": claim}}) for claim, each in claims.items()]
    suite = context.suites.add(gx.ExpectationSuite(name="contract", expectations=named))
    batch = asset.add_batch_definition_whole_dataframe("all")
    definition = gx.ValidationDefinition(data=batch, suite=suite, name="contract")
    outcome = definition.run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": detail, "unexpected_index_column_names": ["id"]},
    )
    by_claim: dict[str, Any] = {}
    for result in outcome.results:  # in an order of its own
        assert result.expectation_config and result.expectation_config.meta
        by_claim[result.expectation_config.meta["claim"]] = result
    return {claim: by_claim[claim] for claim in claims}


def _page(report: Report) -> str:
    """The report as one HTML file without anything to load."""
    lines = []
    for r in report.results:
        state, ids = ("holds", "") if not r.violations else ("violated", ", ".join(r.named(NAMED)))
        cells = (state, r.claim, r.field, f"{r.violations} of {r.rows}", ids, r.expectation)
        lines.append(f"<tr class={state}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    verdict = "violated" if report.violated else "holds"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data contract {report.contract}: {verdict}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; color: #222 }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }}
.holds td:first-child {{ color: #176f2c }} .violated td:first-child {{ color: #b3261e; font-weight: bold }}
</style></head><body>
<h1>Data contract <em>{report.contract}</em>: {verdict}</h1>
<p>{report.rows} rows. Rows are named by id; their text is not shown here.</p>
<table><tr><th>state</th><th>claim</th><th>field</th><th>violations</th><th>ids</th><th>expectation</th></tr>
{chr(10).join(lines)}
</table></body></html>
"""
