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

from data_contracts.columns import Judgement
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
CLASSES, ROWS_OF_A_CLASS = 50, 20  # labels are classes if they are so few, and so many rows stand behind each
LARGEST_CLASS = 0.95


def read(path: Path) -> list[tuple[str, Row]]:
    """The rows of a source.yaml, whose file is looked for in `render.raw` of params.yaml."""
    if path.suffix not in (".yaml", ".yml"):
        raise Problem(f"{path}: expected a source.yaml, which says what its file of rows is (docs/data.md)")
    return rows_of(path, read_yaml(PARAMS_FILE)["render"])


def rows_of(path: Path, render: Mapping[str, Any]) -> list[tuple[str, Row]]:
    """The rows of a source.yaml, each with its place; `render` is that section of params.yaml."""
    source = read_source(path, Path(render["raw"]), path.parent.as_posix(), bool(render["commercial"]))
    return [
        (
            raw.where,
            {
                **{"id": raw.id, "place": raw.where, "source": source.name},
                **{"text": raw.text, "content": raw.content},
                "label": str(raw.fields["label"]) if "label" in raw.fields else None,
            },
        )
        for raw in read_rows(source)
    ]


def judgements(tables: dict[str, list[Row]]) -> list[Judgement]:
    rows = tables["raw"]
    copies = Counter((row["source"], row["id"]) for row in rows)
    answers: dict[tuple[str, str], set[str | None]] = defaultdict(set)
    for row in rows:
        answers[row["source"], row["content"]].add(row["label"])
    classes = classes_of(rows)
    frame = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "text_characters": [len(row["text"].strip()) for row in rows],
            "encoding": ["damaged" if "\ufffd" in row["text"] else "whole" for row in rows],
            "copies": [copies[row["source"], row["id"]] for row in rows],
            "labels_of_the_text": [
                len(answers[row["source"], row["content"]]) if row["source"] in classes else 1 for row in rows
            ],
            "rows_of_the_label": [classes.get(row["source"], {}).get(row["label"]) for row in rows],
        }
    )
    by_source = pd.DataFrame(
        {
            "id": list(classes),
            "largest_class": [max(counts.values()) / counts.total() for counts in classes.values()],
        }
    )
    found = [Judgement(frame, CLAIMS)]
    return [*found, Judgement(by_source, CLAIMS_ABOUT_SOURCES)] if len(by_source) else found


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
    return {
        source: counts
        for source, counts in labels.items()
        if len(counts) <= CLASSES and counts.total() >= ROWS_OF_A_CLASS * len(counts)
    }
