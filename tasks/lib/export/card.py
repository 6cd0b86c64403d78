"""The model card: README.md of a release, in the Hub's format. The pipeline measured every figure in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.lib.settings.release import Card
from tasks.lib.stage import rounded


def sources_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Row counts per source and licence: [{source, license, <use>: count...}]; `rows`: use -> its rows."""
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for use, rows_of_use in rows.items():
        for row in rows_of_use:
            by_use = counts.setdefault((row["source"], row["license"]), dict.fromkeys(rows, 0))
            by_use[use] += 1
    return [{"source": key[0], "license": key[1], **counts[key]} for key in sorted(counts)]


def model_card(
    card: Card,
    sources: Sequence[Mapping[str, Any]],
    quality: Sequence[Mapping[str, Any]],
    formats: Sequence[Mapping[str, Any]],
    loading: Mapping[str, str],
    advice: Sequence[str],
) -> str:
    """The card as Markdown. `quality` has a row per held-out split, `formats` one per format with its drift,
    `loading` says per format how users load it, `advice` holds paragraphs that follow.
    """
    how_to_load = [f"{name}: {how}" for name, how in loading.items()]
    spaced_advice = [f"\n{paragraph}\n" for paragraph in advice]
    return f"""\
---
license: {json.dumps(card.license)}
language: {json.dumps(card.language)}
library_name: "transformers"
pipeline_tag: "text-generation"
tags: ["post-training", "distillation"]
---
# {card.name}

{card.use}

## How it was made

{card.base}
Then supervised fine-tuning, preference tuning and distillation on these rows:

{table(sources)}

`manifest.json` names the hash of every artifact on the way and of every file here.

## How good it is

Greedy answers to held-out rows. `rows`: seen templates; `templates`: held-out phrasings; `clusters`: held-out tasks.

{table(quality)}

## Formats

Each format against the fp32 model, on the fp32 model's answers: logits, nats per token, the share of equal next \
tokens. A format beyond its bound is not released.

{table(formats)}

{_bullets(how_to_load)}
{"".join(spaced_advice)}
## Limits

{_bullets(card.limits)}
"""


def _bullets(points: Sequence[str]) -> str:
    return "\n".join(f"- {point}" for point in points)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, the columns as they turn up; four significant digits."""
    columns: dict[str, None] = {}  # as an ordered set
    for row in rows:
        columns |= dict.fromkeys(row)
    lines = [list(columns), ["---"] * len(columns)]
    for row in rows:
        lines.append([_cell(row.get(column, "")) for column in columns])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    return f"{rounded(value):.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
