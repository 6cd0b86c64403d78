"""Sources: a source.yaml says what a file of labelled rows is, under which licence, and how to read it."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tasks.lib.data.dataset_formats import SHAPES
from tasks.lib.data.mixing import unit_interval
from tasks.lib.data.privacy import excerpt
from tasks.lib.data.prompts import normal_form
from tasks.lib.data.row_problems import Row
from tasks.lib.data.rows import TYPES, FieldType, content_id, read_table
from tasks.lib.data.tables import TEXT_FORMATS
from tasks.lib.stage import Problem, read_yaml, validated

# SPDX identifiers that we know. An own licence is `LicenseRef-<name>`.
COMMERCIAL = frozenset((
    "Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense",
    "GPL-3.0-only", "GPL-3.0-or-later",
    "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
    "PDDL-1.0", "ODC-By-1.0", "ODbL-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0",
))  # fmt: skip
NOT_COMMERCIAL = frozenset((
    "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0",
))  # fmt: skip
MEASURES = ("exact", "normalised", "number", "contains", "choice", "token_f1", "rouge_l")  # evaluation/measures.py
SAME_LABEL_ROWS = 20  # from this many rows on, a single label means that the file is not labelled


class SourceFile(BaseModel, extra="forbid"):
    """source.yaml. `file` is relative to the folder of raw data."""

    file: str
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "dataset"]
    header: bool = True  # of CSV and TSV; without one, `fields` name the columns in their order
    description: str = ""
    license: str
    cluster: str = Field(min_length=1)
    task: str = Field(min_length=1)
    templates: str = ""
    fields: dict[str, str] = {}  # name after renaming -> type in the file
    # of a ready-made instruction set, instead of templates and fields
    shape: Literal["alpaca", "messages", "sharegpt", "self_instruct", "prompt_completion"] | None = None
    rename: dict[str, str] = {}  # name in the file -> name in the templates
    constants: dict[str, Any] = {}  # further fields, the same for every row
    labels: dict[str, Any] | None = None  # value of the field `label` in the file -> value in the templates
    inputs: list[str] | None = None  # the fields that make a row what it is; default: all but label
    measure: str | dict[str, str] = "exact"  # how answers are compared with labels: of MEASURES, or {regex: PATTERN}
    limit: int | None = Field(None, ge=1)  # the largest number of rows, chosen by their content
    on_bad_row: Literal["fail", "quarantine"] = "fail"  # quarantine: set aside, listed with the reason
    max_bad_share: float = Field(0.01, ge=0, le=1)  # ... but no more than this share of all


@dataclass(frozen=True)
class RawRow:
    """One labelled row: its place, what templates may use, and the text that makes it what it is."""

    where: str  # file:row
    fields: dict[str, Any]
    text: str  # the values of the input fields, one per line
    id: str  # content id of all fields
    content: str  # content id of the text's normal form (prompts.py): decides the split


@dataclass(frozen=True)
class Source:
    """A source; `read_rows` reads its rows."""

    name: str  # its folder under the folder of sources
    where: Path  # its source.yaml
    file: SourceFile
    data: Path  # its file of rows
    types: dict[str, FieldType] = field(repr=False)

    @property
    def fields(self) -> list[str]:
        return [*self.file.fields, *self.file.constants]

    @property
    def measure(self) -> str:
        """The measure as rows have it: a name, or `regex:` and the pattern."""
        given = self.file.measure
        return given if isinstance(given, str) else f"regex:{given['regex']}"


def find_sources(folder: Path) -> list[Path]:
    """Every source.yaml under `folder`, by name."""
    paths: list[Path] = []
    if folder.is_dir():
        paths = sorted(folder.rglob("source.yaml"))
    if not paths:
        raise Problem(f"{folder}: expected folders with a source.yaml, found none; see docs/data.md")
    return paths


def inside(folder: Path, name: str, where: str) -> Path:
    """folder/name; a name that leads out of the folder is a Problem."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Problem(f"{where}: expected a path inside {folder}, found {excerpt(name)}")
    return folder / name


def read_source(path: Path, raw: Path, name: str, commercial: bool) -> Source:
    """Read source.yaml. Problem: an unknown or unfit licence, keys that do not go together."""
    file = validated("", SourceFile, read_yaml(path), path)
    check_license(file.license, str(path), commercial)
    _check_measure(path, file.measure)
    types: dict[str, FieldType] = {}
    for field_name, word in file.fields.items():
        if word not in TYPES:
            raise Problem(f"{path}: fields.{field_name}: expected one of {', '.join(TYPES)}, found {excerpt(word)}")
        types[field_name] = TYPES[word]
    if file.shape:
        _check_ready_made(path, file)
    else:
        _check_templated(path, file)
    if not file.header and (file.format not in TEXT_FORMATS or file.shape):
        raise Problem(f"{path}: header: only a CSV or TSV file with fields can be without a header")
    if "label" not in types and file.labels is not None:
        raise Problem(f"{path}: labels: the rows have no field label to map")
    return Source(name, path, file, inside(raw, file.file, f"{path}: file"), types)


def _check_ready_made(path: Path, file: SourceFile) -> None:
    templated = {"templates", "fields", "labels", "inputs", "constants"} & file.model_fields_set
    if templated:
        raise Problem(f"{path}: {min(templated)} cannot be combined with shape, whose rows are instructions already")


def _check_templated(path: Path, file: SourceFile) -> None:
    if not file.fields or not file.templates:
        missing = "templates" if file.fields else "fields"
        raise Problem(f"{path}: {missing} is missing; give templates and fields, or a shape ({', '.join(SHAPES)})")
    for key, names in (("rename", file.rename.values()), ("inputs", file.inputs or ())):
        for name in names:
            if name not in file.fields and name not in file.constants:
                raise Problem(f"{path}: {key}: {name} is not among the fields {', '.join(file.fields)}")


def _check_measure(path: Path, measure: str | dict[str, str]) -> None:
    if isinstance(measure, dict) and list(measure) == ["regex"]:
        try:
            re.compile(measure["regex"])
        except re.error as error:
            pattern = excerpt(measure["regex"])
            raise Problem(f"{path}: measure.regex: {pattern} is not a regular expression: {error}") from None
    elif measure not in MEASURES:
        known = f"{', '.join(MEASURES)} or {{regex: PATTERN}}"
        raise Problem(f"{path}: measure: expected {known}, found {excerpt(measure)}")


def is_known_license(license: str) -> bool:
    return license in COMMERCIAL or license in NOT_COMMERCIAL or license.startswith("LicenseRef-")


def check_license(license: str, where: str, commercial: bool) -> None:
    """An unknown licence, or one that forbids commercial use in a commercial profile, is a Problem."""
    if not is_known_license(license):
        raise Problem(
            f"{where}: license: expected an SPDX identifier such as CC-BY-4.0, or LicenseRef-<name> for your"
            f" own, found {excerpt(license)}"
        )
    if commercial and license in NOT_COMMERCIAL:
        raise Problem(
            f"{where}: license: {license} forbids commercial use; leave the source out, or set"
            " render.commercial to false"
        )


@dataclass
class _Tally:
    """What is counted of a source's rows while they are read."""

    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)  # the Problem of each row that was set aside

    def counted(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        for row in rows:
            self.rows += 1
            if "label" in row.fields:
                self.labels[str(row.fields["label"])] += 1
            yield row


def read_rows(source: Source, quarantine: list[dict[str, str]] | None = None) -> Iterator[RawRow]:
    """Yield the rows of a source as its file has them, never holding more than `limit` of them.

    Bad rows are a Problem, or are added to `quarantine` as {source, problem} where the source says so.
    Problem at the end: too many bad rows, a file without labels, a label map that does not fit.
    """
    file, tally = source.file, _Tally()
    rows = tally.counted(_all_rows(source, tally.bad))
    if file.limit is None:
        yield from rows
    else:
        yield from _limited(rows, file.limit)
    bad, total = len(tally.bad), tally.rows + len(tally.bad)
    if bad > file.max_bad_share * total:
        raise Problem(
            f"{tally.bad[0]}; {bad} of {total} rows are bad, more than max_bad_share"
            f" {file.max_bad_share:g} of {source.where}"
        )
    if not tally.rows:
        raise Problem(f"{source.data}: expected rows, found no valid one")
    _check_labels(source, tally.labels)
    if quarantine is not None:
        quarantine += [{"source": source.name, "problem": problem} for problem in tally.bad]


def _limited(rows: Iterator[RawRow], limit: int) -> Iterator[RawRow]:
    """The `limit` rows whose content hashes lowest, in the order of the file."""
    kept: list[tuple[float, int, RawRow]] = []  # (-hash, -place, row), a heap: the first one goes next
    for place, row in enumerate(rows):
        entry = (-unit_interval("limit", row.id), -place, row)
        if len(kept) < limit:
            heapq.heappush(kept, entry)
        elif entry > kept[0]:
            heapq.heapreplace(kept, entry)
    kept.sort(key=lambda entry: -entry[1])
    for _, _, row in kept:
        yield row


def _all_rows(source: Source, bad: list[str]) -> Iterator[RawRow]:
    """The rows whatever `limit` says; where the source says so, what is wrong with bad ones goes to `bad`."""
    file, data = source.file, source.data
    if not data.exists():
        raise Problem(f"{source.where}: file: expected {file.file} in the folder render.raw, found no {data}")
    in_file = {name: name for name in source.types}  # name in the templates -> name in the file
    for old, new in file.rename.items():
        if new in in_file:
            in_file[new] = old
    types: dict[str, FieldType] | None = None  # of a ready-made set: its rows have fields of their own
    if not file.shape:
        types = {in_file[name]: kind for name, kind in source.types.items()}
    columns = None
    if types and not file.header:
        columns = list(types)

    def set_aside(problem: Problem) -> None:
        if file.on_bad_row == "fail":
            raise problem
        bad.append(str(problem))

    for number, row in read_table(data, types, file.format, columns, set_aside):
        try:
            rows = _raw_rows(file, f"{data}:{number}", row, in_file)
        except Problem as problem:
            set_aside(problem)
            continue
        yield from rows


def _raw_rows(file: SourceFile, where: str, row: Row, in_file: Mapping[str, str]) -> list[RawRow]:
    """What one row of the file becomes: one raw row, or several of a ready-made set."""
    if file.shape is None:
        return [_raw_row(file, where, {name: row[old] for name, old in in_file.items()})]
    given = {file.rename.get(name, name): value for name, value in row.items()}
    return [_conversation(place, turns) for place, turns in SHAPES[file.shape](where, given)]


def _conversation(where: str, turns: list[dict[str, str]]) -> RawRow:
    """A row of a ready-made set: its fields are the messages and the answer, its text what was asked."""
    *messages, answer = turns
    fields = {"messages": messages, "answer": answer["content"]}
    text = "\n".join(turn["content"] for turn in messages if turn["role"] != "system")
    return RawRow(where, fields, text, content_id(fields), content_id(normal_form(text)))


def _raw_row(file: SourceFile, where: str, fields: dict[str, Any]) -> RawRow:
    if file.labels is not None:
        fields["label"] = _mapped(file.labels, fields["label"], where)
    label = fields.get("label")
    if isinstance(label, int) and label < 0:  # answer_choices[-1] would quietly be the last choice
        raise Problem(f"{where}:label: expected a label of at least 0, found {label}; is the file unlabelled?")
    if isinstance(label, str) and not label.strip():
        raise Problem(f"{where}:label: expected a label, found an empty one")
    inputs = file.inputs or [name for name in file.fields if name != "label"]
    text = "\n".join(_plain(fields[name]) for name in inputs)
    content = content_id(normal_form(text))
    return RawRow(where, {**fields, **file.constants}, text, content_id(fields), content)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _mapped(labels: Mapping[str, Any], label: Any, where: str) -> Any:
    if str(label) not in labels:
        raise Problem(f"{where}:label: expected one of {', '.join(labels)}, found {excerpt(label)}")
    return labels[str(label)]


def _check_labels(source: Source, counts: Counter[str]) -> None:
    """One label for a whole file: test sets are often published without labels, all 0 or -1."""
    file = source.file
    if "label" not in file.fields:
        return
    if len(counts) == 1 and counts.total() >= SAME_LABEL_ROWS:
        raise Problem(
            f"{source.data}: label: expected labels that differ, found {excerpt(next(iter(counts)))} in all"
            f" {counts.total()} rows; is the file unlabelled?"
        )
    for label in (file.labels or {}).values():
        if str(label) not in counts:
            raise Problem(f"{source.data}: the label {excerpt(label)} of `labels` is in no row; correct the mapping")
