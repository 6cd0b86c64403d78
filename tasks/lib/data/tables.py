"""Files of rows as they are handed in: JSONL, JSON, CSV, TSV (also gzipped), Parquet, Arrow -> (row number, row).

A row that is broken by itself is yielded as the Problem that names it, so that the reader can set it aside and go
on; a file that cannot be read on raises. What the values may be is checked by rows.read_table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.lib.data.json_rows import read_json, read_jsonl
from tasks.lib.data.privacy import excerpt
from tasks.lib.data.row_problems import Rows, fail
from tasks.lib.data.text_files import MAX_ROW_BYTES, decoded, lines
from tasks.lib.stage import Problem

BATCH = 4096  # rows of a Parquet or Arrow file that are Python objects at a time


def _separated(path: Path, delimiter: str, columns: Sequence[str] | None) -> Rows:
    """`columns` name the cells of a file without a header."""
    csv.field_size_limit(MAX_ROW_BYTES)
    texts = (decoded(f"{path}:{number}", line) for number, line in lines(path))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    if columns:
        header = list(columns)
    while True:
        number = reader.line_num + 1  # where the row starts: a cell may hold line breaks
        where = f"{path}:{number}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fail(where, "a row of separated values", f"{error} (a quote that is not closed?)")
        if header is None:
            header = cells
            if len(set(header)) < len(header) or not all(header):
                fail(where, "a header of distinct names", excerpt(delimiter.join(header)))
        elif len(cells) != len(header):
            found = f"{len(cells)}: {excerpt(delimiter.join(cells))}"
            yield number, Problem(f"{where}: expected {len(header)} fields, found {found}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Rows:
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(BATCH))
    except (pa.ArrowException, OSError) as error:
        fail(str(path), "a whole Parquet file", excerpt(str(error), 60))


def _dataset(path: Path) -> Rows:
    """A folder that `datasets` saved to disk: the files that its state.json names, in that order."""
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
        fail(str(path), f"one split of it ({splits})", "a folder of splits")
    state = path / "state.json"
    if not state.is_file():
        fail(str(path), "a folder saved by datasets' save_to_disk", "no state.json")
    try:
        entries = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        files = [_file_in(path, entry["filename"]) for entry in entries]
    except (ValueError, LookupError, TypeError):
        fail(str(state), "the names of its files under _data_files", "something else")
    yield from _numbered(_arrow_batches(files))


def _file_in(folder: Path, name: str) -> Path:
    """The file of this name; ValueError for a path that leads out of the folder."""
    if Path(name).name != name:
        raise ValueError(name)
    return folder / name


def _arrow_batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The batches of Arrow files or streams, mapped: only what is read comes into memory."""
    for path in paths:
        try:
            with pa.memory_map(str(path)) as source:
                for batch in _batches_of(source):
                    batch.validate(full=True)  # offsets that point outside the file would end the process
                    for start in range(0, batch.num_rows, BATCH):
                        yield batch.slice(start, BATCH)
        except (pa.ArrowException, OSError) as error:
            fail(str(path), "a whole Arrow file or stream", excerpt(str(error), 60))


def _batches_of(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    if source.read(6) == b"ARROW1":
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def _numbered(batches: Iterator[pa.RecordBatch]) -> Rows:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, row


TEXT_FORMATS = ("csv", "tsv")  # their cells have no types
FORMATS: dict[str, Callable[[Path, Sequence[str] | None], Rows]] = {
    "jsonl": lambda path, _: read_jsonl(path),
    "json": lambda path, _: read_json(path),
    "csv": lambda path, columns: _separated(path, ",", columns),
    "tsv": lambda path, columns: _separated(path, "\t", columns),
    "parquet": lambda path, _: _parquet(path),
    "arrow": lambda path, _: _numbered(_arrow_batches([path])),
    "dataset": lambda path, _: _dataset(path),
}
