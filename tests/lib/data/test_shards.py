"""Shards: rows that come or go re-render the blocks around them, any number of processes gives equal bytes."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.lib.data import row_index, shards
from tasks.lib.data.instructions import Plan
from tasks.lib.data.row_index import index_of, write_selected
from tasks.lib.data.rows import INSTRUCTION
from tasks.lib.data.shards import Shard, blocks, processes, render_shards
from tasks.lib.data.sources import RawRow, Source, read_rows, read_source

SHARES = {"train": 0.6, "preference": 0.1, "policy": 0.1, "validation": 0.1, "test": 0.1}


def raw(i: int) -> RawRow:
    name = hashlib.sha256(str(i).encode()).hexdigest()[:16]
    return RawRow(f"f:{i}", {"text": str(i)}, str(i), name, name)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEAST", 16), ("OFTEN", 32), ("MOST", 128)):
        monkeypatch.setattr(shards, name, value)
    monkeypatch.setattr(row_index, "GROUP", 64)


def test_blocks_keep_the_order_and_change_only_around_what_changed() -> None:
    before = list(blocks(raw(i) for i in range(1000)))
    assert [row for block in before for row in block] == [raw(i) for i in range(1000)]
    assert len(before) > 10 and all(16 <= len(block) <= 256 for block in before)
    numbers = [*range(400), 5000, *range(400, 1000), *range(6000, 6010)]
    after = list(blocks(map(raw, numbers)))
    assert len([block for block in after if block not in before]) <= 4


def world(folder: Path, rows: int, **template: Any) -> tuple[Plan, Source]:
    (folder / "templates/toy").mkdir(parents=True, exist_ok=True)
    keys = {"prompt": "Say {{ text }}", "answer": "{{ label }}", **template}
    (folder / "templates/toy/a.yaml").write_text(json.dumps(keys))
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"row {i},{i % 3}\n" for i in range(rows)))
    (folder / "source.yaml").write_text(
        "file: rows.csv\nformat: csv\nlicense: MIT\ncluster: c\ntask: toy\ntemplates: toy\n"
        "fields: {text: str, label: str}\n"
    )
    return Plan(folder / "templates", [], [], SHARES, None), read_source(folder / "source.yaml", folder, "toy", True)


def made(folder: Path, plan: Plan, source: Source, workers: int = 1) -> list[Shard]:
    with ExitStack() as stack:
        pool = processes(stack, workers)
        return list(render_shards(plan, source, read_rows(source), folder / "shards", pool))


def test_one_percent_more_rows_render_only_new_shards_and_move_no_row(workspace: Path) -> None:
    first = made(workspace, *world(workspace, 1000))
    times = {shard.path: shard.path.stat().st_mtime_ns for shard in first}
    second = made(workspace, *world(workspace, 1010))
    new = [shard for shard in second if shard.path not in times]
    assert len(first) > 8 and len(new) <= 2
    assert all(s.path.stat().st_mtime_ns == times[s.path] for s in second if s.path in times)
    splits = [dict(index_of(some).rows[["raw", "split"]].tolist()) for some in (first, second)]
    assert splits[0].items() <= splits[1].items() and len(splits[1]) == 1010


def test_another_template_or_share_renders_again(workspace: Path) -> None:
    first = {shard.path for shard in made(workspace, *world(workspace, 100))}
    assert not first & {s.path for s in made(workspace, *world(workspace, 100, prompt="Ask {{ text }}"))}
    plan, source = world(workspace, 100)
    other = Plan(plan.templates, [], [], {**SHARES, "train": 0.5, "test": 0.2}, None)
    assert not first & {s.path for s in made(workspace, other, source)}


def test_two_processes_write_the_same_bytes_in_groups(workspace: Path) -> None:
    plan, source = world(workspace, 300)
    files = []
    for workers in (1, 2):
        found = made(workspace / str(workers), plan, source, workers)
        index = index_of(found)
        path = workspace / f"{workers}.parquet"
        write_selected(path, found, index.rows.place[index.rows.id.argsort()])
        files.append(path.read_bytes())
    assert files[0] == files[1]
    table = pq.read_table(workspace / "1.parquet")
    assert table.schema.equals(INSTRUCTION) and pq.ParquetFile(workspace / "1.parquet").num_row_groups == 5
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())


def test_exemplars_are_other_rows_of_the_same_split(workspace: Path) -> None:
    plan, source = world(workspace, 400, exemplars=2)
    found = made(workspace, plan, source)
    index = index_of(found)
    write_selected(workspace / "rows.parquet", found, index.rows.place)
    rows = pq.read_table(workspace / "rows.parquet").to_pylist()
    split_of = {row["text"]: row["split"] for row in rows}
    label_of = {f"row {i}": str(i % 3) for i in range(400)}
    assert len(rows) > 300
    for row in rows:
        *shown, asked = row["messages"][0]["content"].split("\n\n")
        assert asked == f"Say {row['text']}" and len(shown) == 2 and len({asked, *shown}) == 3
        for exemplar in shown:
            question, answer = exemplar.removeprefix("Say ").split("\n")
            assert split_of.get(question, row["split"]) == row["split"] and label_of[question] == answer


def test_a_row_without_exemplars_is_left_out_and_said_why(workspace: Path) -> None:
    (shard,) = made(workspace, *world(workspace, 3, exemplars=5))
    assert {rule for _, rule, _ in shard.left} == {"too few exemplars"}
    assert len(index_of([shard]).rows) == 0
