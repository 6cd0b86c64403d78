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
from tasks.lib.data.templates import Rendered, Template, check_fields, read_templates, render
from tasks.lib.data.time_limit import watched
from tasks.lib.stage import Problem

# A prompt that stands in two splits stays in the first of them.
SPLITS = ("clusters", "templates", "rows", "validation", "policy", "preference", "train")
TRAINING = ("train", "preference", "policy")


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


def is_heldout(plan: Plan, template: Template) -> bool:
    return template.heldout or template.name in plan.heldout_templates


def check_heldout(plan: Plan, templates: Mapping[str, Sequence[Template]], sources: Sequence[Source]) -> None:
    """A held-out name that holds nothing out is a misspelling, and would train on what it means to test."""
    known = {source.file.cluster for source in sources}
    if unknown := [c for c in plan.heldout_clusters if c not in known]:
        raise Problem(f"render.heldout_clusters: {unknown[0]} is no cluster; known: {', '.join(sorted(known))}")
    names = {template.name for listed in templates.values() for template in listed}
    if unknown := [t for t in plan.heldout_templates if t not in names]:
        raise Problem(f"render.heldout_templates: {unknown[0]} is no template (<folder>/<name>)")
    for name, listed in templates.items():
        if listed and all(is_heldout(plan, t) for t in listed):
            raise Problem(f"render: every template of {name} is held out; leave one for training")


def render_block(
    plan: Plan, source: Source, templates: Sequence[Template], block: Sequence[RawRow]
) -> tuple[list[Row], list[Left]]:
    """The instructions of a block of a source's rows in order, and what came to nothing."""
    with watched():
        return _render_block(plan, source, templates, block)


def _render_block(
    plan: Plan, source: Source, templates: Sequence[Template], block: Sequence[RawRow]
) -> tuple[list[Row], list[Left]]:
    rows: list[Row] = []
    left: list[Left] = []
    splits = [split_of_row(plan, source, raw) for raw in block]
    alike: dict[str, list[RawRow]] = defaultdict(list)
    for raw, split in zip(block, splits, strict=True):
        alike[split].append(raw)
    for place, (raw, split) in enumerate(zip(block, splits, strict=True)):
        if source.file.shape:
            made = as_given(raw)
            name = "rows" if split == "test" else split
            if isinstance(made, str):
                left.append(Left(place, made, "as_given"))
            else:
                rows.append(instruction(source, raw, name, f"{source.file.task}/as_given", made))
            continue
        for name, picked in asked(plan, templates, raw, split):
            for template in picked:
                solved = rendered(template, raw, alike[split])
                if isinstance(solved, str):
                    left.append(Left(place, solved, template.name))
                else:
                    rows.append(instruction(source, raw, name, template.name, solved))
    return rows, left


def split_of_row(plan: Plan, source: Source, raw: RawRow) -> str:
    if source.file.cluster in plan.heldout_clusters:
        return "clusters"
    return split_of(raw.content, plan.shares)


def asked(plan: Plan, templates: Sequence[Template], raw: RawRow, split: str) -> list[tuple[str, Sequence[Template]]]:
    """The splits of the instructions that a row makes, each with its templates."""
    if split == "clusters":
        return [("clusters", chosen(raw, templates, 1))]
    heldout = [t for t in templates if is_heldout(plan, t)]
    seen = [t for t in templates if not is_heldout(plan, t)]
    if split == "test":
        return [("rows", chosen(raw, seen, 1)), ("templates", chosen(raw, heldout, 1))]
    return [(split, chosen(raw, seen, plan.templates_per_row if split in TRAINING else 1))]


def chosen(raw: RawRow, templates: Sequence[Template], count: int | None) -> list[Template]:
    """`count` of the templates, by hash: every template gets its share of the rows."""
    return ranked(templates, [t.name for t in templates], f"template/{raw.id}")[:count]


def rendered(template: Template, raw: RawRow, alike: Sequence[RawRow]) -> Rendered | str:
    """What a template makes of a row, with exemplars from `alike` where the template wants them."""
    made = render(template, raw.fields, raw.where, seed=f"{raw.id}/{template.name}")
    if isinstance(made, str) or not template.exemplars:
        return made
    shown, seen = list[str](), {raw.content}
    dice = Random(f"exemplars/{raw.id}/{template.name}")
    for place in dice.sample(range(len(alike)), min(len(alike), 3 * template.exemplars + 8)):
        other = alike[place]
        if len(shown) == template.exemplars or other.content in seen:
            continue
        solved = render(template, other.fields, other.where, seed=f"{other.id}/{template.name}")
        if isinstance(solved, Rendered):
            seen.add(other.content)
            shown.append(f"{solved.prompt}\n{solved.answer}")
    if len(shown) < template.exemplars:
        return "too few exemplars"
    return made._replace(prompt="\n\n".join([*shown, made.prompt]))


def as_given(raw: RawRow) -> Rendered | str:
    """A row of a ready-made set: its last question is the prompt, what was said before are turns."""
    turns = [(turn["role"], turn["content"].strip()) for turn in raw.fields["messages"]]
    system = turns.pop(0)[1] if turns[0][0] == "system" else None
    answer = raw.fields["answer"].strip()
    if not all(text for _, text in turns):
        return "empty prompt"
    return Rendered(turns[-1][1], answer, answer, None, system, tuple(turns[:-1])) if answer else "empty answer"


def instruction(source: Source, raw: RawRow, split: str, template: str, made: Rendered) -> Row:
    messages = [{"role": "system", "content": made.system}] if made.system else []
    messages += [{"role": role, "content": text} for role, text in made.turns]
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
        "row": raw.id,
        "text": raw.text,
    }
