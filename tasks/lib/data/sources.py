"""Sources: a source.yaml says what a file of labelled rows is, under which licence, and how to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tasks.lib.data.mixing import ranked
from tasks.lib.data.privacy import excerpt
from tasks.lib.data.rows import TYPES, FieldType, content_id, read_table
from tasks.lib.stage import Problem, read_yaml, validated

# SPDX identifiers that we know, and whether they allow commercial use. An own licence is `LicenseRef-<name>`.
LICENSES: dict[str, bool] = {
    **dict.fromkeys(("Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Unlicense"), True),
    **dict.fromkeys(("CC0-1.0", "PDDL-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"), True),
    **dict.fromkeys(("ODC-By-1.0", "ODbL-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0"), True),
    **dict.fromkeys(("CDLA-Sharing-1.0", "GPL-3.0-only", "GPL-3.0-or-later", "CC-BY-2.0"), True),
    **dict.fromkeys(("CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0"), False),
    **dict.fromkeys(("CC-BY-NC-ND-4.0",), False),
}
SAME_LABEL_ROWS = 20  # with at least so many rows, one single label means that the file is not labelled


class SourceFile(BaseModel, extra="forbid"):
    """source.yaml. `file` is relative to the folder of raw data."""

    file: str
    format: Literal["jsonl", "json", "csv", "tsv", "parquet"]
    description: str = ""
    license: str
    cluster: str = Field(min_length=1)
    task: str = Field(min_length=1)
    templates: str
    fields: dict[str, str]  # name -> type, after renaming, as they stand in the file
    rename: dict[str, str] = {}  # name in the file -> name in the templates
    constants: dict[str, Any] = {}  # further fields, the same for every row
    labels: dict[str, Any] | None = None  # value of the field `label` in the file -> value in the templates
    inputs: list[str] | None = None  # the fields that make a row what it is; default: all but label
    limit: int | None = Field(None, ge=1)  # at most so many rows, chosen by their content


@dataclass(frozen=True)
class RawRow:
    """One labelled row: where it stands, what templates may use, and the text that makes it what it is."""

    where: str
    fields: dict[str, Any]
    text: str  # the values of the input fields, one per line
    id: str  # content id of all fields
    content: str  # content id of the text without regard to case and spacing: decides the split


@dataclass(frozen=True)
class Source:
    """A source with its rows."""

    name: str  # its folder under the folder of sources
    file: SourceFile
    rows: list[RawRow]

    @property
    def fields(self) -> list[str]:
        return [*self.file.fields, *self.file.constants]


def find_sources(folder: Path) -> list[Path]:
    """Every source.yaml under `folder`, by name."""
    found = sorted(folder.rglob("source.yaml")) if folder.is_dir() else []
    if not found:
        raise Problem(f"{folder}: expected folders with a source.yaml, found none; see docs/data.md")
    return found


def inside(folder: Path, name: str, where: str) -> Path:
    """folder/name; a name that leads out of the folder is a Problem."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise Problem(f"{where}: expected a path inside {folder}, found {excerpt(name)}")
    return folder / name


def read_source(path: Path, raw: Path, name: str, commercial: bool) -> Source:
    """Read source.yaml and its rows. Problem: an unknown or unfit licence, bad rows, nothing labelled."""
    file = validated("source", SourceFile, read_yaml(path), path)
    check_license(file.license, str(path), commercial)
    types: dict[str, FieldType] = {}
    for field, word in file.fields.items():
        if word not in TYPES:
            raise Problem(
                f"{path}: fields.{field}: expected one of {', '.join(TYPES)}, found {excerpt(word)}"
            )
        types[field] = TYPES[word]
    unknown = [
        f for f in [*file.rename.values(), *(file.inputs or [])] if f not in {**types, **file.constants}
    ]
    if unknown:
        raise Problem(f"{path}: {unknown[0]} is not among the fields {', '.join(types)}")
    if "label" not in types and file.labels is not None:
        raise Problem(f"{path}: labels: the rows have no field label to map")
    in_file = {new: old for old, new in file.rename.items()}
    data = inside(raw, file.file, f"{path}: file")
    rows = [
        _raw_row(file, f"{data}:{number}", {new: row[in_file.get(new, new)] for new in types})
        for number, row in read_table(data, {in_file.get(f, f): t for f, t in types.items()}, file.format)
    ]
    _check_labels(file, data, rows)
    if file.limit is not None:
        kept = {id(row) for row in ranked(rows, [row.id for row in rows], "limit")[: file.limit]}
        rows = [row for row in rows if id(row) in kept]
    return Source(name, file, rows)


def check_license(license: str, where: str, commercial: bool) -> None:
    """An unknown licence, or one that forbids commercial use in a commercial profile, is a Problem."""
    if license not in LICENSES and not license.startswith("LicenseRef-"):
        raise Problem(
            f"{where}: license: expected an SPDX identifier such as CC-BY-4.0, or LicenseRef-<name> for your"
            f" own, found {excerpt(license)}"
        )
    if commercial and not LICENSES.get(license, True):
        raise Problem(
            f"{where}: license: {license} forbids commercial use; leave the source out, or set"
            " render.commercial to false"
        )


def _raw_row(file: SourceFile, where: str, fields: dict[str, Any]) -> RawRow:
    if file.labels is not None:
        fields["label"] = _mapped(file.labels, fields["label"], where)
    label = fields.get("label")
    if isinstance(label, int) and label < 0:  # answer_choices[-1] would quietly be the last choice
        raise Problem(
            f"{where}:label: expected a label of at least 0, found {label}; is the file unlabelled?"
        )
    inputs = file.inputs or [name for name in file.fields if name != "label"]
    text = "\n".join(_plain(fields[name]) for name in inputs)
    content = content_id(" ".join(text.casefold().split()))
    return RawRow(where, {**fields, **file.constants}, text, content_id(fields), content)


def _plain(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )


def _mapped(labels: Mapping[str, Any], label: Any, where: str) -> Any:
    if str(label) not in labels:
        raise Problem(f"{where}:label: expected one of {', '.join(labels)}, found {excerpt(label)}")
    return labels[str(label)]


def _check_labels(file: SourceFile, path: Path, rows: list[RawRow]) -> None:
    """One label for a whole file: test sets are often published without labels, all 0 or -1."""
    if "label" not in file.fields:
        return
    counts = Counter(str(row.fields["label"]) for row in rows)
    if len(counts) == 1 and len(rows) >= SAME_LABEL_ROWS:
        raise Problem(
            f"{path}:{rows[0].where.rpartition(':')[2]}:label: expected labels that differ, found"
            f" {excerpt(next(iter(counts)))} in all {len(rows)} rows; is the file unlabelled?"
        )
    if file.labels is not None and (absent := [v for v in file.labels.values() if str(v) not in counts]):
        raise Problem(f"{path}: the label {excerpt(absent[0])} of labels: occurs in no row; correct the map")
