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
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.judge import read_panel
from tasks.lib.evaluation.scores import exact_match
from tasks.lib.export.card import model_card, sources_of, weight_file
from tasks.lib.export.gguf_vocabulary import adds_prefix_space
from tasks.lib.export.manifest import hash_of, verify, write_manifest
from tasks.lib.export.parity import check_engine, check_tokens, drift, read_format
from tasks.lib.models.chat import all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.plots import bars
from tasks.lib.settings.release import Params
from tasks.lib.stage import PARAMS_FILE, Problem, Stage, main, read_yaml

FORMATS, OUT, EVALUATION = Path("export/formats"), Path("export/release"), "data/curated/evaluation.parquet"
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
REPORTS = tuple(
    Path(f"reports/{stage}.json") for stage in ("evaluate", "choose", "distill")
)  # copied into the manifest
USES = ("train", "preference", "policy")


def run(params: Params, stage: Stage) -> None:
    # 1. Nothing is judged that is not what quantize wrote, and nothing shipped that may not be
    formats = verify(FORMATS)["formats"]
    for kind in formats:
        if kind not in params.bounds:
            raise Problem(f"release.bounds has no bounds for the format {kind}; add them")
    sources = _licensed_sources(params)

    # 2. The fp32 model on every held-out split
    tokenizer, reference = load_tokenizer(params.model), load_policy(params.model).cpu()
    rows = _heldout(params)
    prompts = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
    answers = _answers(reference, tokenizer, prompts, params)
    quality = _quality(params, tokenizer, rows, answers)

    # 3. Every format against it
    judged: dict[str, dict[str, float]] = {}
    broken = []
    for done, kind in enumerate(formats, start=1):
        try:
            judged[kind] = _judge(FORMATS / kind, params, tokenizer, reference, rows, prompts, answers)
            reasons = params.bounds[kind].broken_by(judged[kind])
        except Problem as problem:
            reasons = [str(problem)]
        broken += [f"{kind}: {', '.join(reasons)}"] if reasons else []
        stage.progress(done, len(formats), **judged.get(kind, {}))
    if broken:
        raise Problem(f"not released, because a format is beyond its bounds: {'; '.join(broken)}; "
                      "leave it out of quantize.formats or loosen release.bounds")  # fmt: skip

    # 4. The folder: formats, card, manifest
    table = [{"format": kind, "bytes": weight_file(FORMATS / kind).stat().st_size, **judged[kind]} for kind in formats]
    paths = {k: f"{k}/{weight_file(FORMATS / k).name}" if k.startswith("gguf") else k for k in formats}
    with replaced_folder(OUT) as folder:
        for kind in formats:
            shutil.copytree(FORMATS / kind, folder / kind)  # copies: a hard link would share DVC's cache file
        card = model_card(params.card, sources, quality, table, paths, adds_prefix_space(tokenizer))
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_manifest(
            folder,
            stages=_stages(),
            metrics={path.stem: _report(path) for path in REPORTS},
            formats={kind: dict(judged[kind]) for kind in formats},
            data=sources,
            license=params.card.license,
        )
        verify(folder)
    shown = [{"format": row["format"], "model": params.card.name, **row} for row in table]
    bars(
        Path("reports/plots/release"),
        shown,
        "format",
        "model",
        {"Bytes": "bytes", "KL": "kl", "Exact match": "exact_match"},
    )
    figures = {f"{kind}.{key}": value for kind in formats for key, value in judged[kind].items()}
    stage.report(figures | {f"{q['split']}.{key}": q[key] for q in quality for key in q if key != "split"})


def _licensed_sources(params: Params) -> list[dict[str, Any]]:
    rows = {use: read_parquet(Path(f"data/curated/{use}.parquet"), ["source", "license"]) for use in USES}
    sources = sources_of(rows)
    for source in sources:
        if source["license"] not in params.licenses:
            raise Problem(
                f"not released: rows of {source['source']} have the licence {source['license'] or '(none)'}, "
                "which is not in release.licenses; drop the source or, if you may, add the licence"
            )
    return sources


def _heldout(params: Params) -> list[dict[str, Any]]:
    """At most `rows_per_split` rows of each split, chosen by content hash."""
    rows = sorted(read_parquet(Path(EVALUATION)), key=lambda row: (row["split"], row["id"]))
    seen: dict[str, int] = {}
    chosen = []
    for row in rows:
        seen[row["split"]] = seen.get(row["split"], 0) + 1
        if seen[row["split"]] <= params.rows_per_split:
            chosen.append(row)
    if not chosen:
        raise Problem(f"{EVALUATION}: no rows; a release needs held-out rows to be judged on")
    return chosen


def _answers(model: Any, tokenizer: Any, prompts: list[list[int]], params: Params) -> list[list[int]]:
    eos_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id or 0
    return generate(
        model, prompts, eos_id=eos_id, pad_id=pad_id, max_new_tokens=params.max_new_tokens, temperature=0.0,
        batch_size=params.batch_size, seed=0,
    )  # fmt: skip


def _quality(
    params: Params, tokenizer: Any, rows: list[dict[str, Any]], answers: list[list[int]]
) -> list[dict[str, Any]]:
    """Per split: exact match, and with a panel the closing and the gold utility."""
    panel = read_panel(params.panel) if params.judge == "panel" else None
    table = []
    for split in sorted({row["split"] for row in rows}):
        told = [
            (row["label"], answer_text(tokenizer, answer))
            for row, answer in zip(rows, answers, strict=True)
            if row["split"] == split
        ]
        judged: dict[str, list[float]] = {"exact_match": [exact_match(text, label, panel) for label, text in told]}
        if panel:
            judged["closing"] = [panel.has_closing(text) for _, text in told]
            judged["gold"] = [panel.utility(label, text) for label, text in told]
        means = {key: sum(values) / len(told) for key, values in judged.items()}
        table.append({"split": split, "rows": len(told), **means})
    return table


def _judge(
    folder: Path,
    params: Params,
    tokenizer: Any,
    reference: Any,
    rows: list[dict[str, Any]],
    prompts: list[list[int]],
    answers: list[list[int]],
) -> dict[str, float]:
    """One format: its drift, its exact match beside the reference's. Raises Problem for other tokens."""
    panel = read_panel(params.panel) if params.judge == "panel" else None
    model, vocabulary = read_format(folder)
    model = model.cpu()
    talks = [row["messages"] for row in rows]
    texts = [talk[-1]["content"] for talk in talks]
    check_tokens(tokenizer, folder, vocabulary, talks, texts)
    if vocabulary and (line := check_engine(weight_file(folder), model, tokenizer, talks[:20])):
        print(f"release: {folder.name}: {line}", flush=True)
    figures = drift(reference, model, prompts, answers, params.batch_size)
    right = []
    for mine in (answers, _answers(model, tokenizer, prompts, params)):
        told = [answer_text(tokenizer, ids) for ids in mine]
        right.append(sum(exact_match(t, row["label"], panel) for t, row in zip(told, rows, strict=True)) / len(rows))
    return figures | {"exact_match": right[1], "exact_match_drop": max(right[0] - right[1], 0.0)}


def _stages() -> dict[str, Any]:
    """Per stage the hashes of its artifacts and of its parameters.

    Hashed here and not read from dvc.lock: that file changes while a run goes on, so a manifest made from it
    would depend on how the run was started.
    """
    sections = read_yaml(PARAMS_FILE)
    return {
        stage: {
            "params": hashlib.sha256(json.dumps(sections.get(stage), sort_keys=True).encode()).hexdigest(),
            "outs": {path.as_posix(): hash_of(path) for path in paths},
        }
        for stage, paths in LINEAGE.items()
    }


def _report(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Problem(f"{path} is missing or not JSON; run its stage") from None


if __name__ == "__main__":
    main(__file__, Params, run)
