"""Raw rows: what people hand in, as the row reader took it and before any template.

The reader holds that every row has the fields and types that its source.yaml states; here is what one row alone
does not show. A file to check is a source.yaml.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import great_expectations.expectations as gxe
import pandas as pd
import pyarrow as pa

from data_contracts import columns
from data_contracts.columns import Claims
from tasks.lib.data.rows import Row
from tasks.lib.data.sources import read_rows, read_source
from tasks.lib.stage import PARAMS_FILE, Problem, read_yaml

EXAMPLE = {
    "id": "9d1c4e0f5b7a3312",
    "place": "tickets/tickets.csv:2",
    "source": "tickets",
    "text": "I was charged twice",
    "content": "51f0a2c4d7e8b963",
    "label": "billing",
}

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("place", pa.string(), nullable=False),  # file:row
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # the values of the input fields
        pa.field("content", pa.string(), nullable=False),  # equal for texts equal but for case and spacing
        pa.field("label", pa.string()),  # null: the rows have none
    ]
)
READS: dict[str, Path] = {}  # what the source.yaml files under render.sources name
JUDGED = ("raw",)
MOSTLY = 0.95  # the share of rows that must hold where a few do no harm: curation drops them
CLASSES, ROWS_OF_A_CLASS = 50, 20  # labels are classes if there are at most 50, with 20 rows each on average
LARGEST_CLASS = 0.95


def read(path: Path) -> list[tuple[str, Row]]:
    """The rows of a source.yaml, whose file is looked for in `render.raw` of params.yaml."""
    if path.suffix not in (".yaml", ".yml"):
        raise Problem(f"{path}: expected a source.yaml, which says what its file of rows is (docs/data.md)")
    return rows_of(path, read_yaml(PARAMS_FILE)["render"])


def rows_of(path: Path, render: Mapping[str, Any]) -> list[tuple[str, Row]]:
    """The rows of a source.yaml, each with its place; `render` is that section of params.yaml."""
    source = read_source(path, Path(render["raw"]), path.parent.as_posix(), bool(render["commercial"]))
    rows = []
    for raw in read_rows(source):
        row = {
            "id": raw.id,
            "place": raw.where,
            "source": source.name,
            "text": raw.text,
            "content": raw.content,
            "label": None,
        }
        if "label" in raw.fields:
            row["label"] = str(raw.fields["label"])
        rows.append((raw.where, row))
    return rows


def claims_of(tables: dict[str, list[Row]]) -> list[Claims]:
    rows = tables["raw"]
    copies = Counter((row["source"], row["id"]) for row in rows)
    labels: dict[tuple[str, str], set[str | None]] = defaultdict(set)  # of (source, content)
    for row in rows:
        labels[row["source"], row["content"]].add(row["label"])
    classes = classes_of(rows)
    labels_of_the_text, rows_of_the_label = [], []
    for row in rows:
        if row["source"] in classes:
            labels_of_the_text.append(len(labels[row["source"], row["content"]]))
            rows_of_the_label.append(classes[row["source"]].get(row["label"]))
        else:
            labels_of_the_text.append(1)
            rows_of_the_label.append(None)
    frame = pd.DataFrame(
        {
            "id": columns.values(rows, "id"),
            "text_characters": columns.characters(rows, "text"),
            "encoding": ["damaged" if "\ufffd" in row["text"] else "whole" for row in rows],
            "copies": [copies[row["source"], row["id"]] for row in rows],
            "labels_of_the_text": labels_of_the_text,
            "rows_of_the_label": rows_of_the_label,
        }
    )
    claims = [Claims(frame, CLAIMS)]
    if classes:
        largest = [max(counts.values()) / counts.total() for counts in classes.values()]
        by_source = pd.DataFrame({"id": list(classes), "largest_class": largest})
        claims.append(Claims(by_source, CLAIMS_ABOUT_SOURCES))
    return claims


CLAIMS = {
    "a row has a text": gxe.ExpectColumnValuesToBeBetween(column="text_characters", min_value=1, mostly=MOSTLY),
    "texts were decoded as what they are (no U+FFFD)": gxe.ExpectColumnValuesToBeInSet(
        column="encoding", value_set=["whole"], mostly=MOSTLY
    ),
    "rows stand once": gxe.ExpectColumnValuesToBeBetween(column="copies", max_value=1, mostly=MOSTLY),
    "a text has one label": gxe.ExpectColumnValuesToBeBetween(column="labels_of_the_text", max_value=1, mostly=MOSTLY),
    "no label occurs once only (is it misspelt?)": gxe.ExpectColumnValuesToBeBetween(
        column="rows_of_the_label", min_value=2
    ),
}
CLAIMS_ABOUT_SOURCES = {
    "no label makes up nearly all rows of a source": gxe.ExpectColumnValuesToBeBetween(
        column="largest_class", max_value=LARGEST_CLASS
    )
}


def classes_of(rows: list[Row]) -> dict[str, Counter[str]]:
    """Source -> rows of each label, of sources whose labels are classes: few, each with many rows on average."""
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if row["label"] is not None:
            labels[row["source"]][row["label"]] += 1
    classes: dict[str, Counter[str]] = {}
    for source, counts in labels.items():
        if len(counts) <= CLASSES and counts.total() >= ROWS_OF_A_CLASS * len(counts):
            classes[source] = counts
    return classes
