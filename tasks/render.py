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

from tasks.lib.data.instructions import SPLITS, TRAINING, Plan, check_heldout, render_block, source_templates
from tasks.lib.data.mixing import quotas, t0_quotas, unit_interval
from tasks.lib.data.rows import LEDGER, Row, write_parquet
from tasks.lib.data.shards import Index, Shard, index_of, processes, render_shards, table_of, write_selected
from tasks.lib.data.sources import Source, find_sources, read_rows, read_source
from tasks.lib.data.templates import Template
from tasks.lib.settings.render import Params
from tasks.lib.stage import Problem, Stage, main, replaced

OUT = Path("data/instructions")
FIRST_ROWS = 200  # of each source, to take examples from
PARTS = 16  # of the prompts, by their hash


def run(params: Params, stage: Stage) -> None:
    # 1. Read the sources and the templates of their tasks.
    sources = read_sources(params)
    plan = plan_of(params)
    templates = {source.name: source_templates(plan, source) for source in sources}
    check_heldout(plan, templates, sources)

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
    # The index is the one thing in memory that grows with the rows.
    chosen = index_of(shards)
    drop_shared_prompts(chosen, ledger)
    rendered = len(chosen.rows)
    mix(params, chosen)
    if not np.any(chosen.rows.split == SPLITS.index("train")):
        raise Problem("render: no row is left for training; check shares, templates and heldout_clusters")
    dropped = Counter(entry["rule"] for entry in ledger)
    figures = {
        **about_sources(sources, templates, shards),
        **about_rows(sources, chosen),
        **{f"dropped.{rule}": count for rule, count in sorted(dropped.items())},
        "dropped.mixing": rendered - len(chosen.rows),
        **({"quarantined": len(quarantine)} if quarantine else {}),
        "prompt_characters.median": int(np.sort(chosen.rows.characters)[len(chosen.rows) // 2]),
        "prompt_characters.longest": int(chosen.rows.characters.max()),
    }
    show(shards, chosen, params.show)

    # 4. Write. By now nothing is in memory of a row but its place.
    places = chosen.rows.place[np.lexsort((chosen.rows.id, chosen.rows.task, chosen.rows.split))]
    del chosen
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


def left_out(shards: list[Shard]) -> list[Row]:
    """The ledger of rows that a template made nothing of."""
    return [
        {"id": raw.id, "rule": rule, "detail": f"{raw.where}: {template}"}
        for shard in shards
        for raw, rule, template in shard.left
    ]


def drop_shared_prompts(index: Index, ledger: list[Row]) -> None:
    """Drop a row whose prompt is in an earlier split of SPLITS: evaluation keeps it, training loses it.

    Of rows with equal ids, which equal raw rows make, the first one stays. A part of all prompts at a time, because
    sorting takes memory; a row with an equal id has an equal prompt.
    """
    rows, dropped = index.rows, dict[int, Row]()
    is_kept = np.zeros(len(rows), bool)
    for part in range(PARTS):
        some = np.flatnonzero(rows.prompt % PARTS == part)
        split, id = rows.split[some], rows.id[some]
        prompts, prompt = np.unique(rows.prompt[some], return_inverse=True)
        home = np.full(len(prompts), len(SPLITS), np.uint8)
        np.minimum.at(home, prompt, split)
        is_home = home[prompt] == split
        at_home = np.flatnonzero(is_home)
        is_kept[some[at_home[np.unique(id[at_home], return_index=True)[1]]]] = True
        for i in np.flatnonzero(~is_kept[some]):
            rule, detail = "rendered twice", f"raw row {rows.raw[some[i]]:016x}"
            if not is_home[i]:
                rule = "prompt in two splits"
                detail = f"{SPLITS[split[i]]}: also {SPLITS[home[prompt[i]]]}"
            dropped[int(some[i])] = {"id": f"{id[i]:016x}", "rule": rule, "detail": detail}
    ledger += [dropped[row] for row in sorted(dropped)]
    index.keep(np.flatnonzero(is_kept))


def mix(params: Params, index: Index) -> None:
    """Keep the mix of tasks: a maximum per task and split (FLAN, T0), weights; which rows, their hash decides."""
    if unknown := sorted(params.weights.keys() - set(index.tasks)):
        raise Problem(f"render.weights: {unknown[0]} is no task; known: {', '.join(index.tasks)}")
    kept = []
    for split in range(len(SPLITS)):
        rows = np.flatnonzero(index.rows.split == split)
        training = SPLITS[split] in TRAINING
        of_task = [rows[index.rows.task[rows] == task] for task in range(len(index.tasks))]
        groups = dict(zip(index.tasks, of_task, strict=True))
        counts = {task: len(found) for task, found in groups.items() if len(found)}
        total = params.total if SPLITS[split] == "train" else None
        if training and params.mixing == "t0":
            per_task = {task: per_template(index, groups[task]) for task in counts}
            taken = t0_quotas(per_task, params.max_per_task, total, params.weights)
        else:
            maximum = params.max_per_task if training else params.max_per_task_evaluation
            taken = quotas(counts, maximum, total, params.weights if training else {})
        for task, count in taken.items():
            found = groups[task]
            if count < len(found):
                ranks = (unit_interval("mixing", f"{id:016x}") for id in index.rows.id[found])
                rank = np.fromiter(ranks, np.float64, len(found))  # a list takes four times the memory
                found = found[np.argsort(rank, kind="stable")[:count]]
            kept.append(found)
    index.keep(np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64))


def per_template(index: Index, rows: np.ndarray) -> list[int]:
    """How many rows each template of a task has."""
    return [int(count) for count in np.bincount(index.rows.template[rows]) if count]


def write_quarantine(path: Path, sources: list[Source], quarantine: list[dict[str, str]]) -> None:
    """One line per bad row; no file where no source sets rows aside."""
    if all(source.file.on_bad_row == "fail" for source in sources):
        return
    with replaced(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in quarantine), encoding="utf-8")


def show(shards: list[Shard], chosen: Index, count: int) -> None:
    """Print a few rendered rows: the quickest way to see a template that is wrong."""
    places = range(len(chosen.rows)) if count else []
    first = heapq.nsmallest(count, places, key=lambda i: unit_interval("show", f"{chosen.rows.id[i]:016x}"))
    for row in table_of(shards, chosen.rows.place[first]).to_pylist():
        print(f"--- {row['split']}  {row['template']}")
        for message in row["messages"]:
            print(f"{message['role']}: {message['content'][:400]}")
        print(f"answer: {row['answer'][:200]}", flush=True)


def examples(params: Params, count: int) -> list[Row]:
    """`count` instructions of the first rows of every source, spread over sources; nothing is written."""
    plan, sources = plan_of(params), read_sources(params)
    templates = {source.name: source_templates(plan, source) for source in sources}
    check_heldout(plan, templates, sources)
    listed: list[list[Row]] = []
    for source in sources:
        first = list(islice(read_rows(source), FIRST_ROWS))
        rows, _ = render_block(plan, source, templates[source.name], first)
        listed.append(sorted(rows, key=lambda row: unit_interval("show", row["id"])))
    by_turns = [row for rows in zip_longest(*listed) for row in rows if row]
    return by_turns[:count]


def about_sources(
    sources: list[Source], templates: dict[str, list[Template]], shards: list[Shard]
) -> dict[str, float | int | str]:
    return {
        "sources": len(sources),
        "raw_rows": sum(shard.rows_in for shard in shards),
        "templates": sum(map(len, {s.file.templates: templates[s.name] for s in sources}.values())),
        "licenses": ", ".join(sorted({source.file.license for source in sources})),
    }


def about_rows(sources: list[Source], index: Index) -> dict[str, float | int | str]:
    of_split = np.bincount(index.rows.split, minlength=len(SPLITS))
    named = {index.tasks[task]: int(n) for task, n in enumerate(np.bincount(index.rows.task)) if n}
    cluster_of = {source.file.task: source.file.cluster for source in sources}
    clusters: Counter[str] = Counter()
    for task, count in named.items():
        clusters[cluster_of[task]] += count
    return {
        "rows": len(index.rows),
        **{f"rows.{SPLITS[split]}": int(of_split[split]) for split in reversed(range(len(SPLITS)))},
        **{f"cluster.{cluster}": count for cluster, count in sorted(clusters.items())},
        **{f"task.{task}": count for task, count in sorted(named.items())},
    }


if __name__ == "__main__":
    main(__file__, Params, run)
