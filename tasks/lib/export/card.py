"""The model card: README.md of a release, in the Hub's format. The line measured every figure in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.settings.release import Card
from tasks.lib.stage import rounded

LOADING = {
    "safetensors": '`AutoModelForCausalLM.from_pretrained("{}")` of transformers',
    "int8": '`AutoModelForCausalLM.from_pretrained("{}")` of transformers, with bitsandbytes',
    "nf4": '`AutoModelForCausalLM.from_pretrained("{}")` of transformers, with bitsandbytes',
    "gguf": "`llama-cli --jinja -m {}` of llama.cpp",
}


def sources_of(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Row counts per source and licence: [{source, license, <use>: count...}]; `rows`: use -> its rows."""
    counts = {use: Counter((row["source"], row["license"]) for row in some) for use, some in rows.items()}
    pairs = sorted({pair for count in counts.values() for pair in count})
    return [
        {"source": source, "license": license} | {use: count[source, license] for use, count in counts.items()}
        for source, license in pairs
    ]


def model_card(
    card: Card,
    sources: Sequence[Mapping[str, Any]],
    quality: Sequence[Mapping[str, Any]],
    formats: Sequence[Mapping[str, Any]],
    files: Mapping[str, str],
    needs_space: bool,
) -> str:
    """The card as Markdown. `quality` has a row per held-out split, `formats` one per format with its drift,
    `files` maps a format to the path that its users load.
    """
    front = {
        "license": card.license,
        "language": card.language,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["post-training", "distillation"],
    }
    loading = "\n".join(f"- {kind}: {LOADING[kind.split('-')[0]].format(path)}" for kind, path in files.items())
    space = (
        "\nThe GGUF files' chat template is the model's. Give llama.cpp raw text with a leading space: "
        "it never adds the one that the tokenizer asks for.\n"
    )
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
            "---",
            f"# {card.name}",
            "",
            card.use,
            "",
            "## How it was made",
            "",
            card.base,
            "Then supervised fine-tuning, preference tuning and distillation on these rows:",
            "",
            table(sources),
            "",
            "`manifest.json` names the hash of every artifact on the way and of every file here.",
            "",
            "## How good it is",
            "",
            "Greedy answers to held-out rows. `rows`: seen templates; `templates`: held-out phrasings; "
            "`clusters`: held-out tasks.",
            "",
            table(quality),
            "",
            "## Formats",
            "",
            "Each format against the fp32 model, on the fp32 model's answers: logits, nats per token, the "
            "share of equal next tokens. A format beyond its bound is not released.",
            "",
            table(formats),
            "",
            loading,
            space if needs_space and any(kind.startswith("gguf") for kind in files) else "",
            "## Limits",
            "",
            *(f"- {limit}" for limit in card.limits),
            "",
        ]
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table, the columns as they turn up; four significant digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{rounded(value):.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def weight_file(folder: Path) -> Path:
    """The file of weights in a format's folder."""
    return next(iter(sorted(folder.glob("*.gguf"))), folder / "model.safetensors")
