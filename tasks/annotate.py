"""annotate: a simulated panel ranks the candidates, or real annotation exports are taken in.

Reads   annotate.source: a panel file (then also data/candidates/candidates.parquet and
        data/curated/preference.parquet), or a folder of exports
Writes  data/annotations/*.json, reports/annotate.json
Run     python -m tasks.annotate
"""

from __future__ import annotations

import random
import shutil
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tasks.lib.annotation.tool_tasks import bucket_names, task
from tasks.lib.data.rows import content_id, read_parquet
from tasks.lib.evaluation.judge import Annotator, Panel, read_panel
from tasks.lib.importers.labelstudio import UNASSIGNED
from tasks.lib.settings.annotate import Params
from tasks.lib.stage import Problem, Stage, main, replaced, write_json

ANNOTATIONS = Path("data/annotations")
FIRST_DAY = datetime(2026, 1, 5, 9, tzinfo=UTC)  # of the simulated round; a report holds no real dates


def run(params: Params, stage: Stage) -> None:
    source = params.source
    if source.is_dir():
        copied = _copy(source, params.exports)
        stage.report({"simulated": False, "files": len(copied), "bytes": sum(f.stat().st_size for f in copied)})
        return
    if params.exports:
        raise Problem(f"annotate.exports names files, but annotate.source ({source}) is not a folder")
    panel = read_panel(source)
    candidates = read_parquet(Path("data/candidates/candidates.parquet"))
    instructions = {row["id"]: row for row in read_parquet(Path("data/curated/preference.parquet"))}
    if lost := [c["instruction"] for c in candidates if c["instruction"] not in instructions]:
        raise Problem(f"data/candidates: {len(lost)} prompts are not curated any more ({lost[0]}); run sample again")
    tasks = [
        _annotated(number, candidate, instructions[candidate["instruction"]], panel, params.careless, stage)
        for number, candidate in enumerate(candidates, 1)
    ]
    write_json(ANNOTATIONS / "panel.json", tasks)
    stage.report(_figures(tasks, panel))


def _copy(source: Path, names: list[str]) -> list[Path]:
    """Take real exports in unchanged, all or none of them."""
    if not names:
        raise Problem(f"annotate.exports is empty; name the export files in {source}")
    if missing := [name for name in names if not (source / name).is_file()]:
        raise Problem(f"{source / missing[0]} does not exist; annotate.exports names files relative to {source}")
    targets = [ANNOTATIONS / Path(name).name for name in names]
    if len(set(targets)) < len(targets):
        raise Problem("annotate.exports: two files have the same name; rename one of them")
    for name, target in zip(names, targets, strict=True):
        with replaced(target) as temporary:
            shutil.copyfile(source / name, temporary)
    return targets


def _annotated(
    number: int,
    candidate: dict[str, Any],
    instruction: dict[str, Any],
    panel: Panel,
    careless: float,
    stage: Stage,
) -> dict[str, Any]:
    """One task of a Label Studio export (version 1.23), with the verdict of every annotator."""
    data = task(candidate, stage.seed)
    data |= {"source": "simulated panel", "license": instruction["license"]}
    annotations = []
    for who, annotator in enumerate(panel.annotators, 1):
        draw = random.Random(stage.seed_of(candidate["id"], annotator.name))
        seconds = 6 + draw.lognormvariate(1.0, 0.5) * len(data["responses"])
        buckets = _buckets(data["responses"], instruction["label"], panel, annotator, draw)
        slip = draw.choice(["cancelled", "abstained", "untouched"]) if draw.random() < careless else ""
        if slip == "untouched":
            shown = [item["id"] for item in data["responses"]]
            buckets, seconds = {UNASSIGNED: shown, **{name: [] for name in list(buckets)[1:]}}, seconds / 10
        identity = (number - 1) * len(panel.annotators) + who
        made = FIRST_DAY + timedelta(minutes=identity)
        ranker = {
            "value": {"ranker": buckets},
            "id": content_id("result", identity)[:10],
            "from_name": "rank",
            "to_name": "responses",
            "type": "ranker",
            "origin": "manual",
        }
        result = [] if slip in ("cancelled", "abstained") else [ranker]
        annotations.append(
            {
                "id": identity,
                "completed_by": who,
                "result": result,
                "was_cancelled": slip == "cancelled",
                "ground_truth": False,
                "created_at": _stamp(made),
                "updated_at": _stamp(made),
                "lead_time": round(seconds, 3),
                "result_count": len(result),
                "unique_id": str(uuid.UUID(content_id("annotation", stage.seed, identity) * 2)),
                "task": number,
            }
        )
    return {
        "id": number,
        "annotations": annotations,
        "drafts": [],
        "predictions": [],
        "data": data,
        "meta": {},
        "created_at": _stamp(FIRST_DAY),
        "updated_at": annotations[-1]["updated_at"],
        "inner_id": number,
        "total_annotations": sum(not a["was_cancelled"] for a in annotations),
        "cancelled_annotations": sum(a["was_cancelled"] for a in annotations),
        "total_predictions": 0,
    }


def _buckets(
    responses: list[dict[str, Any]], label: str, panel: Panel, annotator: Annotator, draw: random.Random
) -> dict[str, list[str]]:
    """The answers in buckets, best first, as this annotator sees them; close ones share a bucket."""
    seen = [
        (panel.utility_to(annotator, label, item["body"]) + draw.gauss(0, annotator.noise), item["id"])
        for item in responses
    ]
    names = bucket_names(len(responses))
    buckets: dict[str, list[str]] = {UNASSIGNED: [], **{name: [] for name in names}}
    place, best = -1, float("inf")
    for utility, identity in sorted(seen, reverse=True):
        if best - utility >= panel.tie_below:  # compared with the best of the bucket: ties do not chain
            place, best = place + 1, utility
        buckets[names[place]].append(identity)
    return buckets


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _figures(tasks: list[dict[str, Any]], panel: Panel) -> dict[str, Any]:
    annotations = [annotation for task in tasks for annotation in task["annotations"]]
    ranked = [annotation for annotation in annotations if annotation["result"]]
    return {
        "simulated": True,
        "tasks": len(tasks),
        "annotators": len(panel.annotators),
        "annotations": len(annotations),
        "cancelled": sum(annotation["was_cancelled"] for annotation in annotations),
        "abstained": sum(not a["result"] and not a["was_cancelled"] for a in annotations),
        "untouched": sum(bool(a["result"][0]["value"]["ranker"][UNASSIGNED]) for a in ranked),
        "seconds_per_ranking": sum(a["lead_time"] for a in ranked) / max(len(ranked), 1),
    }


if __name__ == "__main__":
    main(__file__, Params, run)
