"""Rendering in shards: memory does not grow with the rows, shards of unchanged rows are made once.

A source's rows are cut into blocks where a row's hash says so, not after so many rows: rows that come or go change
the blocks around them only. A block's shard is named by the hash of all that it is made of, so that a run over
changed data renders the new blocks, a killed run goes on, and any number of processes gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.lib.data.instructions import SPLITS, Plan, render_block, source_templates
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import INSTRUCTION, content_id
from tasks.lib.data.sources import RawRow, Source
from tasks.lib.data.templates import Template
from tasks.lib.stage import replaced

LEAST, OFTEN, MOST = 1024, 4096, 16384  # rows of a block: a cut in every OFTEN rows, between the other two
GROUP = 2**16  # rows of a Parquet row group
ROW = [  # of the index
    ("id", np.uint64),
    ("prompt", np.uint64),
    ("raw", np.uint64),
    ("split", np.uint32),  # place in SPLITS
    ("task", np.uint32),  # place in `tasks`
    ("template", np.uint32),  # place in `templates`
    ("characters", np.uint32),  # of the last message
    ("place", np.uint32, 2),  # number of the shard, and of the row in it
]
AHEAD = 4  # blocks in memory that wait for another process
CODE = (  # of a shard, beside this file
    # code (python -m flows.code_deps --write)
    "dataset_formats.py",
    "instructions.py",
    "mixing.py",
    "privacy.py",
    "prompts.py",
    "rows.py",
    "sandbox.py",
    "sources.py",
    "substitution.py",
    "tables.py",
    "templates.py",
    "time_limit.py",
    # end of code
)

LEFT = pa.schema([("place", pa.int64()), ("rule", pa.string()), ("template", pa.string())])
SHARD = INSTRUCTION.append(pa.field("prompt", pa.uint64(), nullable=False))  # hash of the messages


@dataclass(frozen=True)
class Shard:
    """A block's instructions on disk, and what its templates made nothing of."""

    path: Path
    left: list[tuple[RawRow, str, str]]  # the row, the rule, the template
    rows_in: int


def blocks(given: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Runs of rows, cut by content. The last one is never short where there are others."""
    waiting: list[RawRow] = []
    block: list[RawRow] = []
    for row in given:
        block.append(row)
        if len(block) >= MOST or (len(block) >= LEAST and int(row.id, 16) % OFTEN == 0):
            if waiting:
                yield waiting
            waiting, block = block, []
    if waiting and len(block) >= LEAST:
        yield waiting
        waiting = []
    if waiting or block:
        yield waiting + block


def render_shards(
    plan: Plan, source: Source, given: Iterator[RawRow], folder: Path, pool: ProcessPoolExecutor | None
) -> Iterator[Shard]:
    """Render the rows of a source block by block, in order; a shard that is already there stays."""
    listed = source_templates(plan, source)
    recipe = _recipe(plan, source, listed)
    waiting: deque[tuple[list[RawRow], Path, Future[None] | None]] = deque()
    for block in blocks(given):
        path = folder / f"{content_id(recipe, [row.id for row in block])}.arrow"
        future = None
        if not path.is_file() and pool is not None:
            future = pool.submit(_render_with_templates_of, plan, source, block, path)
        elif not path.is_file():
            _render(plan, source, listed, block, path)
        waiting.append((block, path, future))
        if pool is None or len(waiting) > AHEAD:
            yield _finished(*waiting.popleft())
    while waiting:
        yield _finished(*waiting.popleft())


def processes(stack: ExitStack, count: int) -> ProcessPoolExecutor | None:
    """A pool of so many processes for `render_shards`; None where this one does the work."""
    if count == 1:
        return None
    # spawned, not forked: this process may hold threads
    return stack.enter_context(ProcessPoolExecutor(count, mp_context=get_context("spawn")))


def _recipe(plan: Plan, source: Source, listed: Sequence[Template]) -> str:
    """What a shard depends on besides its rows: settings, source, templates, code."""
    settings = {**asdict(plan), "templates": ""}
    files = sorted({Path(template.file) for template in listed})
    code = [Path(__file__).with_name(name) for name in CODE]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *code]]
    about = source.file.model_dump(include={"license", "cluster", "task", "templates", "shape"})
    return content_id(settings, source.name, about, [path.name for path in files], digests)


def _render_with_templates_of(plan: Plan, source: Source, block: list[RawRow], path: Path) -> None:
    """In a process of its own: compiled templates cannot be sent, so it reads them."""
    _render(plan, source, source_templates(plan, source), block, path)


def _render(plan: Plan, source: Source, listed: Sequence[Template], block: Sequence[RawRow], path: Path) -> None:
    """Write a block's shard: its rows, and in the metadata what was left out."""
    made, left = render_block(plan, source, listed, block)
    for row in made:
        row["prompt"] = int(prompt_key(row["messages"]), 16)
    columns = [[getattr(entry, name) for entry in left] for name in LEFT.names]
    notes = pa.table([pa.array(c, f.type) for c, f in zip(columns, LEFT, strict=True)], schema=LEFT)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, LEFT) as stream:
        stream.write_table(notes)
    schema = SHARD.with_metadata({b"left": sink.getvalue().to_pybytes()})
    with replaced(path) as temporary, pa.ipc.new_file(temporary, schema) as file:
        file.write_table(pa.Table.from_pylist(made, schema=SHARD).combine_chunks())


def _finished(block: list[RawRow], path: Path, future: Future[None] | None) -> Shard:
    if future is not None:
        future.result()
    with pa.memory_map(str(path)) as source:
        notes = pa.ipc.open_stream(pa.ipc.open_file(source).schema.metadata[b"left"]).read_all().to_pylist()
    left = [(block[note["place"]], note["rule"], note["template"]) for note in notes]
    return Shard(path, left, len(block))


@dataclass
class Index:
    """What splits, mixing and the report need of all shards' rows, in order: 48 bytes a row, one array."""

    rows: Any  # (N,) np.recarray of ROW
    tasks: list[str]  # sorted
    templates: list[str]

    def keep(self, rows: np.ndarray) -> None:
        """Keep some rows, given in rising order. They move up in place: two indices are never in memory."""
        for start in range(0, len(rows), GROUP):
            some = rows[start : start + GROUP]
            self.rows[start : start + len(some)] = self.rows[some]
        self.rows = self.rows[: len(rows)]


def index_of(shards: Sequence[Shard]) -> Index:
    """Read the narrow columns of all shards."""
    index = Index(np.recarray(sum(_rows_in(shard) for shard in shards), ROW), [], [])
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
    order = sorted(index.tasks)
    rows.task = np.array([order.index(task) for task in index.tasks] or [0], np.uint32)[rows.task]
    index.tasks = order
    return index


def _rows_in(shard: Shard) -> int:
    with pa.memory_map(str(shard.path)) as source:
        file = pa.ipc.open_file(source)
        return sum(file.get_batch(number).num_rows for number in range(file.num_record_batches))


def _hexadecimal(column: pa.ChunkedArray) -> np.ndarray:
    text = "".join(column.to_pylist())
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


def _coded(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    """The place of each text in `names`, which grows."""
    coded = column.combine_chunks().dictionary_encode()
    for text in coded.dictionary.to_pylist():
        if text not in names:
            names.append(text)
    places = np.array([names.index(text) for text in coded.dictionary.to_pylist()], np.uint32)
    return places[coded.indices.to_numpy()] if len(coded) else np.empty(0, np.uint32)


def _last_lengths(messages: pa.ChunkedArray) -> np.ndarray:
    column = messages.combine_chunks()
    lengths = pc.utf8_length(column.flatten().field("content")).to_numpy()
    return lengths[np.cumsum(column.value_lengths().to_numpy()) - 1].astype(np.uint32)


def write_selected(path: Path, shards: Sequence[Shard], places: np.ndarray) -> None:
    """Write the rows at `places` (as in Index) in that order, a row group at a time, equal rows as equal bytes."""
    with replaced(path) as temporary, pq.ParquetWriter(temporary, INSTRUCTION, compression="zstd") as writer:
        for start in range(0, max(len(places), 1), GROUP):
            writer.write_table(table_of(shards, places[start : start + GROUP]), row_group_size=GROUP)
            pa.default_memory_pool().release_unused()


def table_of(shards: Sequence[Shard], places: np.ndarray) -> pa.Table:
    """The rows at `places` in that order. One shard after the other is mapped: memory holds these rows only."""
    shard, row = places[:, 0], places[:, 1]
    order = np.argsort(shard, kind="stable")
    parts = [INSTRUCTION.empty_table()]
    for rows_of_one in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
        if not len(rows_of_one):
            continue
        with pa.memory_map(str(shards[shard[rows_of_one[0]]].path)) as source:
            table = pa.ipc.open_file(source).read_all().select(INSTRUCTION.names)
            parts.append(table.replace_schema_metadata(None).take(pa.array(row[rows_of_one])))
    return pa.concat_tables(parts).take(pa.array(np.argsort(order))).combine_chunks()
