"""render: labelled rows become instructions, each through several templates (T0, FLAN).

Reads   data/raw, templates
Writes  data/instructions/rows.parquet, data/instructions/ledger.parquet, reports/render.json;
        data/instructions/quarantine.jsonl where a source sets bad rows aside
Run     python -m tasks.render

A row's split follows from the hash of its input text, so it never moves, whatever templates, seeds or other
rows do. Test rows are asked through seen templates (split `rows`) and held-out ones (split `templates`);
every row of a held-out cluster is a test row (split `clusters`). Rows are rendered in shards
(.anneal/checkpoints/render), which a later run takes up where their rows and templates are the same.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from contextlib import ExitStack
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from tasks.lib.data.instructions import Plan, check_heldout, render_block, source_templates
from tasks.lib.data.mixing import quotas, t0_quotas, unit_interval
from tasks.lib.data.one_split import keep_in_one_split
from tasks.lib.data.row_index import Index, index_of, table_of, write_selected
from tasks.lib.data.rows import LEDGER, Row, write_parquet
from tasks.lib.data.shards import Shard, processes, render_shards
from tasks.lib.data.sources import Source, find_sources, read_rows, read_source
from tasks.lib.data.splits import SPLITS, TRAINING
from tasks.lib.data.templates import Template
from tasks.lib.settings.render import Params
from tasks.lib.stage import Problem, Stage, main, replaced

OUT = Path("data/instructions")
FIRST_ROWS = 200  # of each source, to take examples from


def run(params: Params, stage: Stage) -> None:
    # 1. Read the sources and the templates of their tasks.
    sources = read_sources(params)
    plan = plan_of(params)
    templates = templates_of(plan, sources)

    # 2. Render each row through the templates of its split, in shards.
    shards: list[Shard] = []
    quarantine: list[dict[str, str]] = []
    with ExitStack() as stack:
        pool = processes(stack, params.workers)
        for number, source in enumerate(sources, 1):
            shards += render_shards(plan, source, read_rows(source, quarantine), stage.checkpoints, pool)
            stage.progress(number, len(sources), shards=len(shards))
    ledger = left_out(shards)

    # 3. No prompt in two splits, then the mix of tasks.
    index = index_of(shards)
    keep_in_one_split(index, ledger)
    rendered = len(index.rows)
    mix(params, index)
    if not np.any(index.rows.split == SPLITS.index("train")):
        raise Problem("render: no row is left for training; check shares, templates and heldout_clusters")
    figures = about_sources(sources, templates, shards) | about_rows(sources, index)
    for rule, count in sorted(Counter(entry["rule"] for entry in ledger).items()):
        figures[f"dropped.{rule}"] = count
    figures["dropped.mixing"] = rendered - len(index.rows)
    if quarantine:
        figures["quarantined"] = len(quarantine)
    figures |= about_prompts(index)
    show(shards, index, params.show)

    # 4. Write. By now nothing is in memory of a row but its place.
    places = index.rows.place[np.lexsort((index.rows.id, index.rows.task, index.rows.split))]  # (N, 2)
    del index
    write_selected(OUT / "rows.parquet", shards, places)
    write_parquet(OUT / "ledger.parquet", ledger, LEDGER)
    write_quarantine(OUT / "quarantine.jsonl", sources, quarantine)
    for path in set(stage.checkpoints.glob("*.arrow")) - {shard.path for shard in shards}:
        path.unlink()
    stage.report(figures)


def plan_of(params: Params) -> Plan:
    return Plan(
        templates=params.templates,
        heldout_clusters=params.heldout_clusters,
        heldout_templates=params.heldout_templates,
        shares=params.shares.model_dump(),
        templates_per_row=None if params.templates_per_row == "all" else params.templates_per_row,
    )


def read_sources(params: Params) -> list[Source]:
    """All sources; each task belongs to one cluster."""
    sources = []
    for path in find_sources(params.sources):
        name = path.parent.relative_to(params.sources).as_posix()
        sources.append(read_source(path, params.raw, name, params.commercial))
    cluster_of: dict[str, str] = {}
    for source in sources:
        task, cluster = source.file.task, source.file.cluster
        if cluster_of.setdefault(task, cluster) != cluster:
            raise Problem(f"{params.sources}: the task {task} is in two clusters: {cluster_of[task]} and {cluster}")
    return sources


def templates_of(plan: Plan, sources: list[Source]) -> dict[str, list[Template]]:
    """The templates of each source, by its name; what is held out must be among them."""
    templates = {source.name: source_templates(plan, source) for source in sources}
    check_heldout(plan, templates, sources)
    return templates


def left_out(shards: list[Shard]) -> list[Row]:
    """The ledger of rows that a template made nothing of."""
    ledger = []
    for shard in shards:
        for raw, rule, template in shard.left:
            ledger.append({"id": raw.id, "rule": rule, "detail": f"{raw.where}: {template}"})
    return ledger


def mix(params: Params, index: Index) -> None:
    """Keep the mix of tasks: a maximum per task and split (FLAN, T0), weights; which rows, their hash decides."""
    for task in sorted(params.weights):
        if task not in index.tasks:
            raise Problem(f"render.weights: {task} is not a task; known: {', '.join(index.tasks)}")
    kept = [np.empty(0, np.int64)]
    for split, name in enumerate(SPLITS):
        numbers = np.flatnonzero(index.rows.split == split)  # (n,) of the split's rows
        tasks = index.rows.task[numbers]
        rows_of = {index.tasks[task]: numbers[tasks == task] for task in np.unique(tasks)}
        for task, count in quotas_of(params, index, name, rows_of).items():
            kept.append(first_by_hash(index, rows_of[task], count))
    index.keep(np.sort(np.concatenate(kept)))


def quotas_of(params: Params, index: Index, split: str, rows_of: dict[str, np.ndarray]) -> dict[str, int]:
    """How many rows of each task a split gets."""
    counts = {task: len(rows) for task, rows in rows_of.items()}
    if split not in TRAINING:
        return quotas(counts, params.max_per_task_evaluation)
    total = params.total if split == "train" else None
    if params.mixing == "flan":
        return quotas(counts, params.max_per_task, total, params.weights)
    of_templates: dict[str, list[int]] = {}  # the rows of each template of a task
    for task, rows in rows_of.items():
        per_template = np.bincount(index.rows.template[rows])
        of_templates[task] = per_template[per_template > 0].tolist()
    return t0_quotas(of_templates, params.max_per_task, total, params.weights)


def first_by_hash(index: Index, rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` rows, of these numbers, whose ids hash lowest."""
    if count >= len(rows):
        return rows
    hashes = (unit_interval("mixing", f"{id:016x}") for id in index.rows.id[rows])
    ranks = np.fromiter(hashes, np.float64, len(rows))  # a list takes four times the memory
    return rows[np.argsort(ranks, kind="stable")[:count]]


def write_quarantine(path: Path, sources: list[Source], quarantine: list[dict[str, str]]) -> None:
    """One line per bad row; no file where no source sets rows aside."""
    if all(source.file.on_bad_row == "fail" for source in sources):
        return
    with replaced(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in quarantine), encoding="utf-8")


def show(shards: list[Shard], index: Index, count: int) -> None:
    """Print a few rendered rows: the quickest way to see a template that is wrong."""
    if not count:
        return
    by_hash = heapq.nsmallest(
        count, range(len(index.rows)), key=lambda i: unit_interval("show", f"{index.rows.id[i]:016x}")
    )
    for row in table_of(shards, index.rows.place[by_hash]).to_pylist():
        print(f"--- {row['split']}  {row['template']}")
        for message in row["messages"]:
            print(f"{message['role']}: {message['content'][:400]}")
        print(f"answer: {row['answer'][:200]}", flush=True)


def examples(params: Params, count: int) -> list[Row]:
    """`count` instructions of the first rows of every source, spread over sources; nothing is written."""
    plan, sources = plan_of(params), read_sources(params)
    templates = templates_of(plan, sources)
    of_sources: list[list[Row]] = []
    for source in sources:
        first = list(islice(read_rows(source), FIRST_ROWS))
        rows, _ = render_block(plan, source, templates[source.name], first)
        of_sources.append(sorted(rows, key=lambda row: unit_interval("show", row["id"])))
    by_turns: list[Row] = []
    for turn in zip_longest(*of_sources):  # the first row of every source, then the second, ...
        by_turns += [row for row in turn if row is not None]
    return by_turns[:count]


def about_sources(
    sources: list[Source], templates: dict[str, list[Template]], shards: list[Shard]
) -> dict[str, float | int | str]:
    of_folder = {source.file.templates: templates[source.name] for source in sources}  # sources may share a folder
    return {
        "sources": len(sources),
        "raw_rows": sum(shard.rows_in for shard in shards),
        "templates": sum(map(len, of_folder.values())),
        "licenses": ", ".join(sorted({source.file.license for source in sources})),
    }


def about_rows(sources: list[Source], index: Index) -> dict[str, float | int | str]:
    figures: dict[str, float | int | str] = {"rows": len(index.rows)}
    of_split = np.bincount(index.rows.split, minlength=len(SPLITS))
    for split, count in reversed(list(zip(SPLITS, of_split, strict=True))):
        figures[f"rows.{split}"] = int(count)
    cluster_of = {source.file.task: source.file.cluster for source in sources}
    tasks: Counter[str] = Counter()
    clusters: Counter[str] = Counter()
    for task, count in zip(index.tasks, np.bincount(index.rows.task, minlength=len(index.tasks)), strict=True):
        if count:
            tasks[task] = int(count)
            clusters[cluster_of[task]] += int(count)
    for cluster, count in sorted(clusters.items()):
        figures[f"cluster.{cluster}"] = count
    for task, count in sorted(tasks.items()):
        figures[f"task.{task}"] = count
    return figures


def about_prompts(index: Index) -> dict[str, float | int | str]:
    characters = np.sort(index.rows.characters)  # (N,)
    return {
        "prompt_characters.median": int(characters[len(characters) // 2]),
        "prompt_characters.longest": int(characters[-1]),
    }


if __name__ == "__main__":
    main(__file__, Params, run)
