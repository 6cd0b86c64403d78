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
from typing import Any, NamedTuple

from tasks.lib.annotation.tool_tasks import bucket_names, task
from tasks.lib.data.rows import Row, content_id, read_parquet
from tasks.lib.evaluation.panel import Annotator, Panel, read_panel
from tasks.lib.importers.labelstudio import UNASSIGNED
from tasks.lib.settings.annotate import Params
from tasks.lib.stage import Problem, Stage, main, replaced, write_json

ANNOTATIONS = Path("data/annotations")
FIRST_DAY = datetime(2026, 1, 5, 9, tzinfo=UTC)  # of the simulated round; a report holds no real dates


def run(params: Params, stage: Stage) -> None:
    source = params.source
    if source.is_dir():
        copied = _copy(source, params.exports)
        stage.report({"simulated": False, "files": len(copied), "bytes": sum(file.stat().st_size for file in copied)})
        return
    if params.exports:
        raise Problem(f"annotate.exports names files, but annotate.source ({source}) is not a folder")
    panel = read_panel(source)
    candidates = read_parquet(Path("data/candidates/candidates.parquet"))
    instructions = {row["id"]: row for row in read_parquet(Path("data/curated/preference.parquet"))}
    lost = [row["instruction"] for row in candidates if row["instruction"] not in instructions]
    if lost:
        raise Problem(f"data/candidates: {len(lost)} prompts are not curated now ({lost[0]}); run sample again")
    tasks = []
    for number, candidate in enumerate(candidates, 1):
        instruction = instructions[candidate["instruction"]]
        tasks.append(_annotated_task(number, candidate, instruction, panel, params.careless, stage))
    write_json(ANNOTATIONS / "panel.json", tasks)
    stage.report(_figures(tasks, panel))


def _copy(source: Path, names: list[str]) -> list[Path]:
    """Take real exports in unchanged, all or none of them."""
    if not names:
        raise Problem(f"annotate.exports is empty; name the export files in {source}")
    for name in names:
        if not (source / name).is_file():
            raise Problem(f"{source / name} does not exist; annotate.exports names files relative to {source}")
    targets = [ANNOTATIONS / Path(name).name for name in names]
    if len(set(targets)) < len(targets):
        raise Problem("annotate.exports: two files have the same name; rename one of them")
    for name, target in zip(names, targets, strict=True):
        with replaced(target) as temporary:
            shutil.copyfile(source / name, temporary)
    return targets


# --- the simulated panel ---


class Submission(NamedTuple):
    """What a simulated annotator submits for a task."""

    buckets: dict[str, list[str]] | None  # name -> ids of answers, best first; None without a verdict
    seconds: float
    was_cancelled: bool = False


def _annotated_task(
    number: int, candidate: Row, instruction: Row, panel: Panel, careless: float, stage: Stage
) -> dict[str, Any]:
    """One task of a Label Studio export (version 1.23), with the annotations of the whole panel."""
    data = task(candidate, stage.seed)
    data["source"] = "simulated panel"
    data["license"] = instruction["license"]
    annotations = []
    for who, annotator in enumerate(panel.annotators, 1):
        draw = random.Random(stage.seed_of(candidate["id"], annotator.name))
        submission = _submission(data["responses"], instruction, panel, annotator, careless, draw)
        identity = (number - 1) * len(panel.annotators) + who
        annotations.append(_annotation(identity, number, who, submission, stage.seed))
    cancelled = sum(annotation["was_cancelled"] for annotation in annotations)
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
        "total_annotations": len(annotations) - cancelled,
        "cancelled_annotations": cancelled,
        "total_predictions": 0,
    }


def _annotation(identity: int, task_number: int, who: int, submission: Submission, seed: int) -> dict[str, Any]:
    """One annotation of a task, as Label Studio exports it. Annotations are a minute apart."""
    made = _stamp(FIRST_DAY + timedelta(minutes=identity))
    results = []
    if submission.buckets is not None:
        ranker = {
            "value": {"ranker": submission.buckets},
            "id": content_id("result", identity)[:10],
            "from_name": "rank",
            "to_name": "responses",
            "type": "ranker",
            "origin": "manual",
        }
        results.append(ranker)
    return {
        "id": identity,
        "completed_by": who,
        "result": results,
        "was_cancelled": submission.was_cancelled,
        "ground_truth": False,
        "created_at": made,
        "updated_at": made,
        "lead_time": round(submission.seconds, 3),
        "result_count": len(results),
        "unique_id": str(uuid.UUID(content_id("annotation", seed, identity) * 2)),
        "task": task_number,
    }


def _submission(
    responses: list[dict[str, Any]],
    instruction: Row,
    panel: Panel,
    annotator: Annotator,
    careless: float,
    draw: random.Random,
) -> Submission:
    """The answers in buckets, or with the probability `careless` one of three slips that importers recognise."""
    seconds = 6 + draw.lognormvariate(1.0, 0.5) * len(responses)
    buckets = _buckets(responses, instruction, panel, annotator, draw)
    if draw.random() >= careless:
        return Submission(buckets, seconds)
    slip = draw.choice(["cancelled", "abstained", "untouched"])
    if slip == "untouched":
        untouched: dict[str, list[str]] = {name: [] for name in buckets}
        untouched[UNASSIGNED] = [item["id"] for item in responses]
        return Submission(untouched, seconds / 10)
    return Submission(None, seconds, was_cancelled=slip == "cancelled")


def _buckets(
    responses: list[dict[str, Any]], instruction: Row, panel: Panel, annotator: Annotator, draw: random.Random
) -> dict[str, list[str]]:
    """The answers in buckets, best first, as this annotator sees them; close ones share a bucket."""
    seen = []  # (utility with noise, id) of each answer
    for item in responses:
        utility = panel.utility_to(annotator, instruction, item["body"]) + draw.gauss(0, annotator.noise)
        seen.append((utility, item["id"]))
    names = bucket_names(len(responses))
    buckets: dict[str, list[str]] = {name: [] for name in (UNASSIGNED, *names)}
    place, best = -1, float("inf")
    for utility, identity in sorted(seen, reverse=True):
        if best - utility >= panel.tie_below:  # compared with the best of the bucket: ties do not chain
            place, best = place + 1, utility
        buckets[names[place]].append(identity)
    return buckets


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _figures(tasks: list[dict[str, Any]], panel: Panel) -> dict[str, Any]:
    counts = {"annotations": 0, "cancelled": 0, "abstained": 0, "untouched": 0}
    seconds = []  # of every ranking, also of an untouched one
    for each in tasks:
        for annotation in each["annotations"]:
            counts["annotations"] += 1
            if annotation["was_cancelled"]:
                counts["cancelled"] += 1
            elif not annotation["result"]:
                counts["abstained"] += 1
            else:
                buckets = annotation["result"][0]["value"]["ranker"]
                counts["untouched"] += bool(buckets[UNASSIGNED])
                seconds.append(annotation["lead_time"])
    figures: dict[str, Any] = {"simulated": True, "tasks": len(tasks), "annotators": len(panel.annotators)}
    figures |= counts
    figures["seconds_per_ranking"] = sum(seconds) / max(len(seconds), 1)
    return figures


if __name__ == "__main__":
    main(__file__, Params, run)
