"""release: the gate that every exported format must pass, and the folder that is shipped.

Reads   export/formats, release.model, data/curated/{train,preference,policy,evaluation}.parquet, the panel file of
        release.panel; the artifacts in LINEAGE and the reports in REPORTS
Writes  export/release, reports/release.json, reports/plots/release.csv, reports/plots/release.png
Run     python -m tasks.release
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import read_parquet
from tasks.lib.data.splits import TRAINING
from tasks.lib.evaluation.measures import content_metric
from tasks.lib.evaluation.panel import read_panel
from tasks.lib.export.card import model_card, sources_of
from tasks.lib.export.formats import FORMATS
from tasks.lib.export.gate import answered, pass_gate, quality_by_split
from tasks.lib.export.manifest import hash_of, verify, write_manifest
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.plots import bars
from tasks.lib.settings.release import Params
from tasks.lib.stage import PARAMS_FILE, Problem, Stage, main, read_yaml

EXPORT, OUT, EVALUATION = Path("export/formats"), Path("export/release"), Path("data/curated/evaluation.parquet")
LINEAGE = {  # stage -> its artifacts, whose hashes the manifest names
    "base": (Path("models/base"),),
    "render": (Path("data/instructions/rows.parquet"),),
    "curate": (Path("data/curated"),),
    "sft": (Path("models/sft"),),
    "preferences": (Path("data/preferences"),),
    "reward": (Path("models/reward"),),
    "choose": (Path("models/policy"),),
    "distill": (Path("models/student"),),
}
REPORTS = (  # copied into the manifest
    Path("reports/evaluate.json"),
    Path("reports/choose.json"),
    Path("reports/distill.json"),
)


def run(params: Params, stage: Stage) -> None:
    # 1. The export is what quantize wrote, and all training rows may be released.
    names: list[str] = verify(EXPORT)["formats"]
    for name in names:
        if name not in params.bounds:
            raise Problem(f"release.bounds has no bounds for the format {name}; add them")
    sources = _licensed_sources(params)

    # 2. The fp32 model on every held-out split, and every format against it.
    panel = read_panel(params.panel) if params.judge == "gold" else None
    reference = answered(params, _heldout(params), panel)
    quality = quality_by_split(reference)
    figures_of = pass_gate(names, EXPORT, reference, params, stage)

    # 3. The folder: formats, card, manifest.
    card_rows = []  # a row per format
    for name in names:
        size = FORMATS[name].weight_file(EXPORT / name).stat().st_size
        card_rows.append({"format": name, "bytes": size, **figures_of[name]})
    with replaced_folder(OUT) as folder:
        for name in names:
            shutil.copytree(EXPORT / name, folder / name)  # copies: a hard link would share DVC's cache file
        card = _card(params, sources, quality, card_rows, reference.tokenizer)
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_manifest(
            folder,
            stages=_stages(),
            metrics={path.stem: _report(path) for path in REPORTS},
            formats=figures_of,
            data=sources,
            license=params.card.license,
        )
        verify(folder)

    # 4. Plot and report.
    shown = [{"format": row["format"], "model": params.card.name, **row} for row in card_rows]
    metric = content_metric(card_rows[0])
    axes = {"Bytes": "bytes", "KL": "kl", metric.replace("_", " ").capitalize(): metric}
    bars(Path("reports/plots/release"), shown, "format", "model", axes)
    stage.report(_flat(figures_of) | _flat(quality))


def _licensed_sources(params: Params) -> list[dict[str, Any]]:
    """Row counts per source and licence of what models learn from. Raises Problem for a licence that is not listed.

    Rows of `validation` only choose models, those of the evaluation only judge them.
    """
    rows = {use: read_parquet(Path(f"data/curated/{use}.parquet"), ["source", "license"]) for use in TRAINING}
    sources = sources_of(rows)
    for source in sources:
        if source["license"] not in params.licenses:
            raise Problem(
                f"not released: rows of {source['source']} have the licence {source['license'] or '(none)'}, "
                "which is not in release.licenses; drop the source, or add the licence if you may release it"
            )
    return sources


def _heldout(params: Params) -> list[dict[str, Any]]:
    """At most `rows_per_split` rows of each split, chosen by content hash."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in read_parquet(EVALUATION):
        rows_of.setdefault(row["split"], []).append(row)
    if not rows_of:
        raise Problem(f"{EVALUATION}: no rows; a release needs held-out rows to be judged on")
    chosen = []
    for split in sorted(rows_of):
        rows = sorted(rows_of[split], key=lambda row: row["id"])
        chosen += rows[: params.rows_per_split]
    return chosen


def _card(
    params: Params,
    sources: list[dict[str, Any]],
    quality: dict[str, dict[str, float]],
    card_rows: list[dict[str, Any]],
    tokenizer: Any,
) -> str:
    """The model card; of `card_rows` there is one per format, as the card's table shows it."""
    loading: dict[str, str] = {}
    advice: list[str] = []  # each paragraph once
    for row in card_rows:
        name = row["format"]
        loading[name] = FORMATS[name].how_to_load(EXPORT / name)
        paragraph = FORMATS[name].advice(tokenizer)
        if paragraph and paragraph not in advice:
            advice.append(paragraph)
    splits = [{"split": split, **figures} for split, figures in quality.items()]
    return model_card(params.card, sources, splits, card_rows, loading, advice)


def _stages() -> dict[str, Any]:
    """Per stage the hashes of its artifacts and of its parameters.

    Hashed here and not read from dvc.lock: that file changes while a run goes on, so a manifest made from it
    would depend on how the run was started.
    """
    sections = read_yaml(PARAMS_FILE)
    stages = {}
    for stage, paths in LINEAGE.items():
        section = json.dumps(sections.get(stage), sort_keys=True)
        stages[stage] = {
            "params": hashlib.sha256(section.encode()).hexdigest(),
            "outs": {path.as_posix(): hash_of(path) for path in paths},
        }
    return stages


def _report(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Problem(f"{path} is missing or not JSON; run its stage") from None


def _flat(figures_of: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures by format (or split) and key, in one dict: {"int8": {"kl": 0.1}} becomes {"int8.kl": 0.1}."""
    flat = {}
    for name, figures in figures_of.items():
        for key, figure in figures.items():
            flat[f"{name}.{key}"] = figure
    return flat


if __name__ == "__main__":
    main(__file__, Params, run)
