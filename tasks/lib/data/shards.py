"""Rendering in shards: memory does not grow with the rows, shards of unchanged rows are made once.

A source's rows are cut into blocks where a row's hash says so, not after a fixed number: rows that come or go change
the blocks around them only. A block's shard is named by the hash of all that it is made of, so that a run over
changed data renders the new blocks, a killed run goes on, and any number of processes gives the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from tasks.lib.data.instructions import Left, Plan, render_block, source_templates
from tasks.lib.data.prompts import prompt_key
from tasks.lib.data.rows import INSTRUCTION, content_id
from tasks.lib.data.sources import RawRow, Source
from tasks.lib.data.templates import Template
from tasks.lib.stage import file_hash, replaced

LEAST, OFTEN, MOST = 1024, 4096, 16384  # a block has LEAST to MOST rows, and may end at one row in OFTEN
AHEAD = 4  # blocks in memory that wait for another process
CODE = (  # the files of this folder that the content of a shard depends on
    # code (python -m flows.code_deps --write)
    "dataset_formats.py",
    "instructions.py",
    "json_rows.py",
    "mixing.py",
    "privacy.py",
    "prompts.py",
    "row_problems.py",
    "rows.py",
    "sandbox.py",
    "sources.py",
    "splits.py",
    "substitution.py",
    "tables.py",
    "template_files.py",
    "templates.py",
    "text_files.py",
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


def blocks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """Runs of rows, cut by content. The last one is never short where there are others."""
    finished: list[RawRow] = []  # held back, because a short last block joins it
    block: list[RawRow] = []
    for row in rows:
        block.append(row)
        is_end = len(block) >= LEAST and int(row.id, 16) % OFTEN == 0
        if is_end or len(block) >= MOST:
            if finished:
                yield finished
            finished, block = block, []
    if finished and len(block) >= LEAST:
        yield finished
        finished = []
    if finished or block:
        yield finished + block


@dataclass(frozen=True)
class _Job:
    """A block whose shard is there, or is being made by another process."""

    block: list[RawRow]
    path: Path
    future: Future[None] | None

    def finished(self) -> Shard:
        if self.future is not None:
            self.future.result()
        left = []
        for entry in _read_left(self.path):
            left.append((self.block[entry.place], entry.rule, entry.template))
        return Shard(self.path, left, len(self.block))


def render_shards(
    plan: Plan, source: Source, rows: Iterator[RawRow], folder: Path, pool: ProcessPoolExecutor | None
) -> Iterator[Shard]:
    """Render the rows of a source block by block, in order; a shard that is already there stays."""
    templates = source_templates(plan, source)
    recipe = _recipe(plan, source, templates)
    jobs: deque[_Job] = deque()
    for block in blocks(rows):
        path = folder / f"{content_id(recipe, [row.id for row in block])}.arrow"
        future = None
        if not path.is_file() and pool is not None:
            future = pool.submit(_render_with_templates_of, plan, source, block, path)
        elif not path.is_file():
            _render(plan, source, templates, block, path)
        jobs.append(_Job(block, path, future))
        if pool is None or len(jobs) > AHEAD:
            yield jobs.popleft().finished()
    while jobs:
        yield jobs.popleft().finished()


def processes(stack: ExitStack, count: int) -> ProcessPoolExecutor | None:
    """A pool of processes for `render_shards`; None where this process does the work."""
    if count == 1:
        return None
    # spawned, not forked: this process may hold threads
    return stack.enter_context(ProcessPoolExecutor(count, mp_context=get_context("spawn")))


def _recipe(plan: Plan, source: Source, templates: Sequence[Template]) -> str:
    """What a shard depends on besides its rows: settings, source, templates, code."""
    settings = {**asdict(plan), "templates": ""}
    files = sorted({template.file for template in templates})
    code = [Path(__file__).with_name(name) for name in CODE]
    digests = [file_hash(path) for path in [*files, *code]]
    about = source.file.model_dump(include={"license", "cluster", "task", "templates", "shape", "measure"})
    return content_id(settings, source.name, about, [path.name for path in files], digests)


def _render_with_templates_of(plan: Plan, source: Source, block: list[RawRow], path: Path) -> None:
    """In a process of its own: compiled templates cannot be sent, so it reads them."""
    _render(plan, source, source_templates(plan, source), block, path)


def _render(plan: Plan, source: Source, templates: Sequence[Template], block: Sequence[RawRow], path: Path) -> None:
    """Write a block's shard: its rows, and in the metadata what was left out."""
    rows, left = render_block(plan, source, templates, block)
    for row in rows:
        row["prompt"] = int(prompt_key(row["messages"]), 16)
    schema = SHARD.with_metadata({b"left": _packed(left)})
    with replaced(path) as temporary, pa.ipc.new_file(temporary, schema) as file:
        file.write_table(pa.Table.from_pylist(rows, schema=SHARD).combine_chunks())


def _packed(left: Sequence[Left]) -> bytes:
    """What was left out, as an Arrow stream in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, LEFT) as stream:
        stream.write_table(pa.Table.from_pylist([asdict(entry) for entry in left], schema=LEFT))
    return sink.getvalue().to_pybytes()


def _read_left(path: Path) -> list[Left]:
    """What was left out of a shard's block."""
    with pa.memory_map(str(path)) as source:
        packed = pa.ipc.open_file(source).schema.metadata[b"left"]
    return [Left(**entry) for entry in pa.ipc.open_stream(packed).read_all().to_pylist()]
