"""Instructions: what the templates of a source make of a block of its rows.

A row's split follows from the hash of its input text. Few-shot exemplars are rows of the same block and split, so
what a block becomes depends on its own rows and on the templates only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tasks.lib.data.mixing import ranked, split_of
from tasks.lib.data.rows import Row, content_id
from tasks.lib.data.sources import RawRow, Source, inside
from tasks.lib.data.splits import TRAINING
from tasks.lib.data.template_files import read_templates
from tasks.lib.data.templates import Rendered, Template, check_fields, render
from tasks.lib.data.time_limit import watched
from tasks.lib.stage import Problem


@dataclass(frozen=True)
class Plan:
    """How rows become instructions, whatever the source."""

    templates: Path
    heldout_clusters: Sequence[str]
    heldout_templates: Sequence[str]
    shares: Mapping[str, float]
    templates_per_row: int | None  # None: all


@dataclass(frozen=True)
class Left:
    """A row that a template made nothing of: its place in the block, why, and the template."""

    place: int
    rule: str
    template: str


def source_templates(plan: Plan, source: Source) -> list[Template]:
    """The templates of a source, all of whose fields it has; none for a ready-made set."""
    if source.file.shape:
        return []
    folder = inside(plan.templates, source.file.templates, f"{source.where}: templates")
    templates = read_templates(folder, source.file.templates)
    for template in templates:
        check_fields(template, source.fields, source.name)
    return templates


def is_heldout_template(plan: Plan, template: Template) -> bool:
    return template.heldout or template.name in plan.heldout_templates


def check_heldout(plan: Plan, templates: Mapping[str, Sequence[Template]], sources: Sequence[Source]) -> None:
    """A held-out name that holds nothing out is a misspelling, and would train on what it means to test."""
    clusters = {source.file.cluster for source in sources}
    for cluster in plan.heldout_clusters:
        if cluster not in clusters:
            raise Problem(f"render.heldout_clusters: {cluster} is not a cluster; known: {', '.join(sorted(clusters))}")
    names: set[str] = set()
    for of_source in templates.values():
        names.update(template.name for template in of_source)
    for name in plan.heldout_templates:
        if name not in names:
            raise Problem(f"render.heldout_templates: {name} is not a template (<folder>/<name>)")
    for source_name, of_source in templates.items():
        if of_source and all(is_heldout_template(plan, template) for template in of_source):
            raise Problem(f"render: every template of {source_name} is held out; leave one for training")


def render_block(
    plan: Plan, source: Source, templates: Sequence[Template], block: Sequence[RawRow]
) -> tuple[list[Row], list[Left]]:
    """The instructions of a block of a source's rows in order, and what came to nothing."""
    if source.file.shape:
        return _block_as_given(plan, source, block)
    with watched():
        return _block_through_templates(plan, source, templates, block)


def _block_as_given(plan: Plan, source: Source, block: Sequence[RawRow]) -> tuple[list[Row], list[Left]]:
    """The rows of a ready-made set, which need no template."""
    rows: list[Row] = []
    left: list[Left] = []
    for place, raw in enumerate(block):
        split = split_of_row(plan, source, raw)
        if split == "test":
            split = "rows"
        made = as_given(raw)
        if isinstance(made, str):
            left.append(Left(place, made, "as_given"))
        else:
            rows.append(instruction(source, raw, split, f"{source.file.task}/as_given", made))
    return rows, left


def _block_through_templates(
    plan: Plan, source: Source, templates: Sequence[Template], block: Sequence[RawRow]
) -> tuple[list[Row], list[Left]]:
    rows: list[Row] = []
    left: list[Left] = []
    splits = [split_of_row(plan, source, raw) for raw in block]
    of_split: dict[str, list[RawRow]] = defaultdict(list)  # where few-shot exemplars come from
    for raw, split in zip(block, splits, strict=True):
        of_split[split].append(raw)
    for place, (raw, split) in enumerate(zip(block, splits, strict=True)):
        for name, picked in splits_and_templates(plan, templates, raw, split):
            for template in picked:
                made = rendered(template, raw, of_split[split])
                if isinstance(made, str):
                    left.append(Left(place, made, template.name))
                else:
                    rows.append(instruction(source, raw, name, template.name, made))
    return rows, left


def split_of_row(plan: Plan, source: Source, raw: RawRow) -> str:
    if source.file.cluster in plan.heldout_clusters:
        return "clusters"
    return split_of(raw.content, plan.shares)


def splits_and_templates(
    plan: Plan, templates: Sequence[Template], raw: RawRow, split: str
) -> list[tuple[str, Sequence[Template]]]:
    """The splits of the instructions that a row makes, each with its templates."""
    if split == "clusters":
        return [("clusters", chosen(raw, templates, 1))]
    heldout: list[Template] = []
    seen: list[Template] = []
    for template in templates:
        if is_heldout_template(plan, template):
            heldout.append(template)
        else:
            seen.append(template)
    if split == "test":
        return [("rows", chosen(raw, seen, 1)), ("templates", chosen(raw, heldout, 1))]
    if split in TRAINING:
        return [(split, chosen(raw, seen, plan.templates_per_row))]
    return [(split, chosen(raw, seen, 1))]


def chosen(raw: RawRow, templates: Sequence[Template], count: int | None) -> list[Template]:
    """`count` of the templates (None: all), by hash: every template gets its share of the rows."""
    return ranked(templates, [template.name for template in templates], f"template/{raw.id}")[:count]


def rendered(template: Template, raw: RawRow, of_split: Sequence[RawRow]) -> Rendered | str:
    """What a template makes of a row, with exemplars from the rows of its split where the template wants them."""
    made = render(template, raw.fields, raw.where, seed=f"{raw.id}/{template.name}")
    if isinstance(made, str) or not template.exemplars:
        return made
    exemplars: list[str] = []
    seen = {raw.content}
    dice = Random(f"exemplars/{raw.id}/{template.name}")
    # more than are wanted, because a row may be like another one, or come to nothing
    for place in dice.sample(range(len(of_split)), min(len(of_split), 3 * template.exemplars + 8)):
        other = of_split[place]
        if len(exemplars) == template.exemplars or other.content in seen:
            continue
        solved = render(template, other.fields, other.where, seed=f"{other.id}/{template.name}")
        if isinstance(solved, Rendered):
            seen.add(other.content)
            exemplars.append(f"{solved.prompt}\n{solved.answer}")
    if len(exemplars) < template.exemplars:
        return "too few exemplars"
    return made._replace(prompt="\n\n".join([*exemplars, made.prompt]))


def as_given(raw: RawRow) -> Rendered | str:
    """A row of a ready-made set: its last question is the prompt, what comes before are turns."""
    turns = [(turn["role"], turn["content"].strip()) for turn in raw.fields["messages"]]
    system = None
    if turns[0][0] == "system":
        _, system = turns.pop(0)
    answer = raw.fields["answer"].strip()
    if not all(text for _, text in turns):
        return "empty prompt"
    if not answer:
        return "empty answer"
    _, prompt = turns.pop()
    return Rendered(prompt, answer, answer, None, system, tuple(turns))


def instruction(source: Source, raw: RawRow, split: str, template: str, made: Rendered) -> Row:
    """One row of INSTRUCTION."""
    messages = []
    if made.system:
        messages.append({"role": "system", "content": made.system})
    for role, text in made.turns:
        messages.append({"role": role, "content": text})
    messages.append({"role": "user", "content": made.prompt})
    return {
        "id": content_id(source.file.task, template, messages, made.answer),
        "source": source.name,
        "license": source.file.license,
        "cluster": source.file.cluster,
        "task": source.file.task,
        "template": template,
        "split": split,
        "messages": messages,
        "answer": made.answer,
        "choices": made.choices,
        "label": made.label,
        "measure": source.measure,
        "row": raw.id,
        "text": raw.text,
    }
