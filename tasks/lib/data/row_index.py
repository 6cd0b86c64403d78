"""The index of all shards' rows: the one thing in memory that grows with them, 48 bytes a row.

Splits, mixing and the report need a row's numbers only; its texts are read again when the rows are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.lib.data.rows import INSTRUCTION
from tasks.lib.data.shards import Shard
from tasks.lib.data.splits import SPLITS
from tasks.lib.stage import replaced

GROUP = 2**16  # rows of a Parquet row group
COLUMNS = [
    ("id", np.uint64),
    ("prompt", np.uint64),  # the same for the same prompt (prompts.py)
    ("raw", np.uint64),  # id of the raw row
    ("split", np.uint32),  # place in SPLITS
    ("task", np.uint32),  # place in Index.tasks
    ("template", np.uint32),  # place in Index.templates
    ("characters", np.uint32),  # of the last message
    ("place", np.uint32, 2),  # number of the shard, and of the row in it
]


@dataclass
class Index:
    """What splits, mixing and the report need of all shards' rows, in order."""

    rows: Any  # (N,) np.recarray of COLUMNS
    tasks: list[str]  # sorted
    templates: list[str]

    def keep(self, rows: np.ndarray) -> None:
        """Keep these rows, (K,) of their numbers, rising. They move up in place: two indices are never in memory."""
        for start in range(0, len(rows), GROUP):
            group = rows[start : start + GROUP]
            self.rows[start : start + len(group)] = self.rows[group]
        self.rows = self.rows[: len(rows)]


def index_of(shards: Sequence[Shard]) -> Index:
    """Read the narrow columns of all shards."""
    index = Index(np.recarray(sum(_count(shard) for shard in shards), COLUMNS), [], [])
    rows = index.rows
    start = 0
    for number, shard in enumerate(shards):
        with pa.memory_map(str(shard.path)) as source:
            table = pa.ipc.open_file(source).read_all()
            part = slice(start, start + len(table))
            rows.id[part] = _hexadecimal(table["id"])
            rows.prompt[part] = table["prompt"].to_numpy()
            rows.raw[part] = _hexadecimal(table["row"])
            rows.split[part] = _coded(table["split"], list(SPLITS))
            rows.task[part] = _coded(table["task"], index.tasks)
            rows.template[part] = _coded(table["template"], index.templates)
            rows.characters[part] = _last_lengths(table["messages"])
            rows.place[part, 0] = number
            rows.place[part, 1] = np.arange(len(table))
            start = part.stop
    if len(rows):  # the tasks' numbers in the order of their names
        tasks = sorted(index.tasks)
        new_number = np.array([tasks.index(task) for task in index.tasks], np.uint32)
        rows.task = new_number[rows.task]
        index.tasks = tasks
    return index


def _count(shard: Shard) -> int:
    with pa.memory_map(str(shard.path)) as source:
        file = pa.ipc.open_file(source)
        return sum(file.get_batch(number).num_rows for number in range(file.num_record_batches))


def _hexadecimal(column: pa.ChunkedArray) -> np.ndarray:
    """Texts of 16 hex digits as numbers."""
    text = "".join(column.to_pylist())
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


def _coded(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    """The place of each text in `names`, which grows."""
    if not len(column):
        return np.empty(0, np.uint32)
    coded = column.combine_chunks().dictionary_encode()
    places = []  # in `names`, of each text of the dictionary
    for text in coded.dictionary.to_pylist():
        if text not in names:
            names.append(text)
        places.append(names.index(text))
    return np.array(places, np.uint32)[coded.indices.to_numpy()]


def _last_lengths(messages: pa.ChunkedArray) -> np.ndarray:
    """Characters of the last message of each conversation."""
    column = messages.combine_chunks()
    lengths = pc.utf8_length(column.flatten().field("content")).to_numpy()  # of all messages, one after the other
    last = np.cumsum(column.value_lengths().to_numpy()) - 1
    return lengths[last].astype(np.uint32)


def write_selected(path: Path, shards: Sequence[Shard], places: np.ndarray) -> None:
    """Write the rows at `places`, (K, 2), in that order, a row group at a time, equal rows as equal bytes."""
    with replaced(path) as temporary, pq.ParquetWriter(temporary, INSTRUCTION, compression="zstd") as writer:
        for start in range(0, max(len(places), 1), GROUP):
            writer.write_table(table_of(shards, places[start : start + GROUP]), row_group_size=GROUP)
            pa.default_memory_pool().release_unused()


def table_of(shards: Sequence[Shard], places: np.ndarray) -> pa.Table:
    """The rows at `places`, (K, 2), in that order. Shards are mapped one by one: memory holds these rows only."""
    shard, row = places[:, 0], places[:, 1]
    by_shard = np.argsort(shard, kind="stable")
    parts = [INSTRUCTION.empty_table()]
    for rows_of_one in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1):
        if not len(rows_of_one):
            continue
        with pa.memory_map(str(shards[shard[rows_of_one[0]]].path)) as source:
            table = pa.ipc.open_file(source).read_all().select(INSTRUCTION.names)
            parts.append(table.replace_schema_metadata(None).take(pa.array(row[rows_of_one])))
    in_given_order = np.argsort(by_shard)
    return pa.concat_tables(parts).take(pa.array(in_given_order)).combine_chunks()
