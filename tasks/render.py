"""render: labelled rows become instructions, each through several templates (T0, FLAN).

Reads   data/raw, templates
Writes  data/instructions/rows.parquet, data/instructions/ledger.parquet, reports/render.json
Run     python -m tasks.render

A row's split follows from the hash of its input text, so it never moves, whatever templates, seeds or other
rows do. Test rows are asked through seen templates (split `rows`) and held-out ones (split `templates`);
every row of a held-out cluster is a test row (split `clusters`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from tasks.lib.data.mixing import quotas, ranked, split_of
from tasks.lib.data.rows import INSTRUCTION, LEDGER, Row, content_id, write_parquet
from tasks.lib.data.sources import RawRow, Source, find_sources, inside, read_source
from tasks.lib.data.templates import Template, check_fields, read_templates, render
from tasks.lib.stage import Problem, Stage, main

# A prompt that stands in two splits stays in the first of them.
SPLITS = ("clusters", "templates", "rows", "validation", "policy", "preference", "train")
TRAINING = ("train", "preference", "policy")


class Shares(BaseModel, extra="forbid"):
    train: float = Field(ge=0)
    preference: float = Field(ge=0)
    policy: float = Field(ge=0)
    validation: float = Field(ge=0)
    test: float = Field(ge=0)

    @model_validator(mode="after")
    def sum_to_one(self) -> Shares:
        if abs(sum(self.model_dump().values()) - 1) > 1e-9:
            raise ValueError("shares must sum to 1")
        return self


class Params(BaseModel, extra="forbid"):
    raw: Path
    sources: Path
    templates: Path
    heldout_clusters: list[str]
    heldout_templates: list[str]
    shares: Shares
    templates_per_row: int | Literal["all"] = Field(union_mode="left_to_right")
    max_per_task: int = Field(ge=1)
    total: int | None = Field(ge=1)
    max_per_task_evaluation: int = Field(ge=1)
    commercial: bool
    show: int = Field(ge=0)


def run(params: Params, stage: Stage) -> None:
    # 1. Read every source and the templates of its task.
    sources = read_sources(params)
    templates = {s.name: source_templates(params, s) for s in sources}
    check_heldout(params, sources, templates)

    # 2. Render each row through the templates of its split.
    rows: list[Row] = []
    ledger: list[Row] = []
    for number, source in enumerate(sources, 1):
        render_source(params, source, templates[source.name], rows, ledger)
        stage.progress(number, len(sources), rows=len(rows))

    # 3. No prompt in two splits, then the mix of tasks.
    rows = without_shared_prompts(rows, ledger)
    rendered = Counter(row["task"] for row in rows)
    rows = mixed(params, rows)
    if not any(row["split"] == "train" for row in rows):
        raise Problem("render: no row is left for training; check shares, templates and heldout_clusters")
    rows.sort(key=lambda row: (SPLITS.index(row["split"]), row["task"], row["id"]))
    show(rows, params.show)

    # 4. Write.
    folder = Path("data/instructions")
    write_parquet(folder / "rows.parquet", rows, INSTRUCTION)
    write_parquet(folder / "ledger.parquet", ledger, LEDGER)
    stage.report(figures(sources, templates, rows, ledger, rendered))


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
            raise Problem(
                f"{params.sources}: the task {task} is in two clusters: {cluster_of[task]} and {cluster}"
            )
    return sources


def source_templates(params: Params, source: Source) -> list[Template]:
    """The templates of a source, all of whose fields it has."""
    where = f"{params.sources}/{source.name}/source.yaml: templates"
    templates = read_templates(inside(params.templates, source.file.templates, where), source.file.templates)
    for template in templates:
        check_fields(template, source.fields, source.name)
    return templates


def is_heldout(params: Params, template: Template) -> bool:
    return template.heldout or template.name in params.heldout_templates


def check_heldout(params: Params, sources: list[Source], templates: dict[str, list[Template]]) -> None:
    """A held-out name that holds nothing out is a misspelling, and would train on what it means to test."""
    known = {source.file.cluster for source in sources}
    if unknown := [c for c in params.heldout_clusters if c not in known]:
        raise Problem(
            f"render.heldout_clusters: {unknown[0]} is no cluster; known: {', '.join(sorted(known))}"
        )
    names = {template.name for listed in templates.values() for template in listed}
    if unknown := [t for t in params.heldout_templates if t not in names]:
        raise Problem(f"render.heldout_templates: {unknown[0]} is no template (<folder>/<name>)")
    for source in sources:
        if all(is_heldout(params, t) for t in templates[source.name]):
            raise Problem(f"render: every template of {source.name} is held out; leave one for training")


def render_source(
    params: Params, source: Source, templates: list[Template], rows: list[Row], ledger: list[Row]
) -> None:
    """Add the instructions of a source to `rows`, and to `ledger` what rendered empty."""
    heldout = [t for t in templates if is_heldout(params, t)]
    seen = [t for t in templates if not is_heldout(params, t)]
    shares = params.shares.model_dump()
    per_row = len(seen) if params.templates_per_row == "all" else params.templates_per_row
    for raw in source.rows:
        split = split_of(raw.content, shares)
        if source.file.cluster in params.heldout_clusters:
            asked = [("clusters", chosen(raw, templates, 1))]
        elif split == "test":
            asked = [("rows", chosen(raw, seen, 1)), ("templates", chosen(raw, heldout, 1))]
        else:
            asked = [(split, chosen(raw, seen, per_row if split in TRAINING else 1))]
        for name, picked in asked:
            for template in picked:
                made = render(template, raw.fields, raw.where, seed=f"{raw.id}/{template.name}")
                if isinstance(made, str):
                    ledger.append({"id": raw.id, "rule": made, "detail": f"{raw.where}: {template.name}"})
                    continue
                messages = [{"role": "system", "content": made.system}] if made.system else []
                messages.append({"role": "user", "content": made.prompt})
                rows.append(
                    {
                        "id": content_id(source.file.task, template.name, messages, made.answer),
                        "source": source.name,
                        "license": source.file.license,
                        "cluster": source.file.cluster,
                        "task": source.file.task,
                        "template": template.name,
                        "split": name,
                        "messages": messages,
                        "answer": made.answer,
                        "choices": made.choices,
                        "label": made.label,
                        "row": raw.id,
                        "text": raw.text,
                    }
                )


def chosen(raw: RawRow, templates: list[Template], count: int) -> list[Template]:
    """`count` of the templates, by hash: every template gets its share of the rows."""
    return ranked(templates, [t.name for t in templates], f"template/{raw.id}")[:count]


def prompt_of(row: Row) -> str:
    return "\0".join(message["content"] for message in row["messages"])


def without_shared_prompts(rows: list[Row], ledger: list[Row]) -> list[Row]:
    """Drop a row whose prompt is in an earlier split of SPLITS: evaluation keeps it, training loses it.

    Of rows with equal ids, which equal raw rows make, the first one stays.
    """
    home: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: SPLITS.index(row["split"])):
        home.setdefault(prompt_of(row), row["split"])
    kept: dict[str, Row] = {}
    for row in rows:
        first = home[prompt_of(row)]
        if first == row["split"] and row["id"] not in kept:
            kept[row["id"]] = row
        elif first == row["split"]:
            ledger.append({"id": row["id"], "rule": "rendered twice", "detail": f"raw row {row['row']}"})
        else:
            ledger.append(
                {"id": row["id"], "rule": "prompt in two splits", "detail": f"{row['split']}: also {first}"}
            )
    return list(kept.values())


def mixed(params: Params, rows: list[Row]) -> list[Row]:
    """Examples-proportional mixing with a maximum per task and split; which rows, their hash decides."""
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["split"]][row["task"]].append(row)
    kept = []
    for split, tasks in groups.items():
        maximum = params.max_per_task if split in TRAINING else params.max_per_task_evaluation
        total = params.total if split == "train" else None
        taken = quotas({task: len(found) for task, found in tasks.items()}, maximum, total)
        for task, found in tasks.items():
            kept += ranked(found, [row["id"] for row in found], "mixing")[: taken[task]]
    return kept


def show(rows: list[Row], count: int) -> None:
    """Print a few rendered rows: the quickest way to see a template that is wrong."""
    for row in ranked(rows, [row["id"] for row in rows], "show")[:count]:
        print(f"--- {row['split']}  {row['template']}")
        for message in row["messages"]:
            print(f"{message['role']}: {message['content'][:400]}")
        print(f"answer: {row['answer'][:200]}", flush=True)


def figures(
    sources: list[Source],
    templates: dict[str, list[Template]],
    rows: list[Row],
    ledger: list[Row],
    rendered: Counter[str],
) -> dict[str, float | int | str]:
    lengths = sorted(len(row["messages"][-1]["content"]) for row in rows)
    kept = Counter(row["task"] for row in rows)
    return {
        "sources": len(sources),
        "raw_rows": sum(len(source.rows) for source in sources),
        "templates": sum(map(len, {s.file.templates: templates[s.name] for s in sources}.values())),
        "licenses": ", ".join(sorted({source.file.license for source in sources})),
        "rows": len(rows),
        **{f"rows.{split}": sum(row["split"] == split for row in rows) for split in reversed(SPLITS)},
        **{f"cluster.{c}": n for c, n in sorted(Counter(row["cluster"] for row in rows).items())},
        **{f"task.{task}": count for task, count in sorted(kept.items())},
        **{f"dropped.{rule}": n for rule, n in sorted(Counter(entry["rule"] for entry in ledger).items())},
        "dropped.mixing": sum(rendered.values()) - len(rows),
        "prompt_characters.median": lengths[len(lengths) // 2],
        "prompt_characters.longest": lengths[-1],
    }


if __name__ == "__main__":
    main(__file__, Params, run)
