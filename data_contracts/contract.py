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
from tasks.lib.data.row_problems import fail
from tasks.lib.data.rows import Row, format_of, read_parquet, read_table
from tasks.lib.stage import Problem, replaced, write_json

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

    from data_contracts.columns import Claims

CONTRACTS = (
    "raw",
    "instructions",
    "sft_inputs",
    "candidates",
    "rankings",
    "instruction_tokens",
    "ranking_tokens",
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
    places: list[str]  # where these are in what people handed in (file:row), "" where that is not known

    def with_places(self, place_of: Mapping[str, str]) -> Result:
        return replace(self, places=[place_of.get(id, "") for id in self.ids])

    def named(self, count: int) -> list[str]:
        """The first `count` rows: id (file:row)."""
        names = []
        for id, place in zip(self.ids[:count], self.places, strict=False):
            names.append(f"{id} ({place})" if place else id)
        return names


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
        first, *others = self.violated
        text = (
            f"data contract {self.contract} is violated: {first.claim}"
            f" ({first.expectation}, field {first.field}):"
            f" {first.violations} of {first.rows} rows, ids {', '.join(first.named(5)) or 'unknown'}"
        )
        if others:
            text += f"; {len(others)} more claims are violated"
        return text

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

    `locate` says where the rows of given ids are (id -> file:row); of files that is known. Of files, only
    claims about the rows themselves are judged, not those about other tables. Zero rows are a Problem.
    """
    warnings.filterwarnings("ignore", module="great_expectations")
    module = module_of(contract)
    if isinstance(rows, Mapping):
        tables = dict(rows)
    else:
        read = getattr(module, "read", None) or partial(read_rows, schema=module.SCHEMA)
        placed: list[tuple[str, Row]] = []
        for path in rows:
            placed += read(path)
        tables = {module.JUDGED[0]: [row for _, row in placed]}
        locate = locate or partial(_places, placed)
    count = sum(len(tables.get(name, ())) for name in module.JUDGED)
    if not count:
        raise Problem(f"data contract {contract}: expected rows, found none")
    results: list[Result] = []
    for claims in module.claims_of(tables):
        results += _results(claims)
    ids: set[str] = set()
    for result in results:
        ids.update(result.ids)
    place_of: dict[str, str] = {}
    if locate and ids:
        place_of = locate(ids)
    return Report(contract, count, [result.with_places(place_of) for result in results])


def _places(placed: Sequence[tuple[str, Row]], ids: set[str]) -> dict[str, str]:
    """Where the first rows of these ids are."""
    place_of: dict[str, str] = {}
    for place, row in placed:
        if row["id"] in ids:
            place_of.setdefault(row["id"], place)
    return place_of


def read_rows(path: Path, schema: pa.Schema) -> list[tuple[str, Row]]:
    """The rows of a file in any format of the row reader, with exactly the fields and types of `schema`.

    Each with its place, file:row.
    """
    if format_of(path) == "parquet":
        return [(f"{path}:{number}", row) for number, row in enumerate(read_parquet(path, schema.names), 1)]
    rows = []
    for number, row in read_table(path):
        where = f"{path}:{number}"
        for field in schema:
            _check_field(f"{where}:{field.name}", row, field)
        rows.append((where, {name: row[name] for name in schema.names}))
    return rows


def _check_field(where: str, row: Row, field: pa.Field) -> None:
    """A field that is missing, null where it must not be, or of another type is a Problem."""
    if field.name not in row:
        fail(where, str(field.type), "no such field")
    if row[field.name] is None and not field.nullable:
        fail(where, str(field.type), "null")
    try:
        pa.array([row[field.name]], field.type)
    except (pa.ArrowException, TypeError):
        fail(where, str(field.type), excerpt(row[field.name]))


def _results(claims: Claims) -> list[Result]:
    """Two passes: counts for all claims, which is quick, then the ids of those that are violated."""
    outcomes = _validated(claims.frame, claims.expectations, "BASIC")
    results = []
    for claim, outcome in outcomes.items():
        if outcome.exception_info.get("exception_message"):
            raise RuntimeError(f"{claim}: {outcome.exception_info['exception_message']}")
        expectation = claims.expectations[claim]
        count, ids = 0, []
        if not outcome.success:
            count = int(outcome.result.get("unexpected_count") or 1)
            ids = _ids(claims.frame, claim, expectation, count)
        kind = outcome.expectation_config.type
        results.append(Result(claim, kind, _columns(expectation), len(claims.frame), count, ids, []))
    return results


def _columns(expectation: Expectation) -> str:
    """The column, or the first of a pair, or all of several."""
    column = getattr(expectation, "column", None) or getattr(expectation, "column_A", None)
    return column or ", ".join(getattr(expectation, "column_list", ()))


def _ids(frame: pd.DataFrame, claim: str, expectation: Expectation, count: int) -> list[str]:
    """The first ids that violate a claim; naming one takes 0.3 ms, so not all are asked for."""
    sizes = [len(frame)]
    if count > EXACT:
        sizes = [EXACT, 10 * EXACT, len(frame)]
    for size in sizes:
        outcome = _validated(frame.head(size), {claim: expectation}, "COMPLETE")[claim]
        ids = [str(entry["id"]) for entry in outcome.result.get("unexpected_index_list") or []]
        if ids:
            return list(dict.fromkeys(ids))[:NAMED]
    return []


def _validated(frame: pd.DataFrame, expectations: Mapping[str, Expectation], detail: str) -> dict[str, Any]:
    """Great Expectations' outcome of each claim."""
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    named = [each.copy(update={"meta": {"claim": claim}}) for claim, each in expectations.items()]
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
    return {claim: by_claim[claim] for claim in expectations}


def _page(report: Report) -> str:
    """The report as one HTML file without anything to load."""
    lines = []
    for result in report.results:
        state = "violated" if result.violations else "holds"
        line = f"<tr class={state}>"
        for cell in (
            state,
            result.claim,
            result.field,
            f"{result.violations} of {result.rows}",
            ", ".join(result.named(NAMED)),
            result.expectation,
        ):
            line += f"<td>{html.escape(cell)}</td>"
        lines.append(line + "</tr>")
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
