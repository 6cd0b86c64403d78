"""Claims about the files that annotation tools import: what comes back names the answers that were shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tasks.lib.annotation.tool_tasks import task_files
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.formats import read_export

ANSWERS = ["w", "x", "y", "z"]
CANDIDATES = [{"id": f"c{n}", "prompt": [{"role": "user", "content": f"Q{n}"}], "answers": ANSWERS} for n in range(20)]


def rankings(path: Path, rows: list[Any]) -> list[dict[str, Any]]:
    path.write_text(json.dumps(rows))
    found, dropped, _ = cleaned(read_export(path), "MIT")
    assert not dropped
    return found


def alphabetical(rows: list[dict[str, Any]]) -> bool:
    for row in rows:
        in_order = sorted(row["answers"])
        if row["ranks"] != [in_order.index(answer) for answer in row["answers"]]:
            return False
    return True


def labelled(task: dict[str, Any], number: int, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "lead_time": 30.0}
    return {**task, "annotations": [{**annotation, "result": [{"type": kind, "value": value}]}]}


def test_pairs_show_every_two_answers_on_sides_drawn_by_chance(tmp_path):
    files = task_files("pairwise", CANDIDATES, 4, seed=1)
    tasks = files["labelstudio_pairwise_tasks.json"]
    assert isinstance(tasks, list) and len(tasks) == 20 * 6
    left_first = sum(task["data"]["response_a"] < task["data"]["response_b"] for task in tasks)
    assert 40 < left_first < 80
    rows = []
    for n, task in enumerate(tasks):
        side = "left" if task["data"]["response_a"] < task["data"]["response_b"] else "right"
        rows.append(labelled(task, n, "pairwise", {"selected": side}))
    found = rankings(tmp_path / "pairs.json", rows)
    assert len(found) == 120 and alphabetical(found)


def test_a_plain_ranker_and_argilla_bring_back_whole_rankings(tmp_path):
    tasks: Any = task_files("ranker", CANDIDATES, 4, seed=1)["labelstudio_ranker_tasks.json"]
    rows = []
    for number, task in enumerate(tasks):
        best_first = sorted(task["data"]["responses"], key=lambda item: item["body"])
        rows.append(labelled(task, number, "ranker", {"ranker": {"rank": [item["id"] for item in best_first]}}))
    found = rankings(tmp_path / "ranker.json", rows)
    assert len(found) == 20 and alphabetical(found)

    records: Any = task_files("argilla", CANDIDATES, 4, seed=1)["argilla_records.json"]
    for record in records:
        names = [name for name in record["fields"] if name != "prompt"]
        value = sorted(names, key=record["fields"].__getitem__)
        record["responses"] = {"rank": [{"value": value, "user_id": "u", "status": "submitted"}]}
    found = rankings(tmp_path / "argilla.json", records)
    assert len(found) == 20 and alphabetical(found)
    assert len({tuple(record["fields"].values())[1:] for record in records}) > 5  # shuffled by record
    for candidate, record in zip(CANDIDATES, records, strict=True):  # and the shown order is recorded
        places = [int(shown.rpartition("-")[2]) for shown in record["metadata"]["shown"]]
        assert [candidate["answers"][place] for place in places] == [*record["fields"].values()][1:]


def test_every_labelling_configuration_is_xml_that_reads_what_its_tasks_hold():
    for kind in ("buckets", "ranker", "pairwise"):
        files: Any = task_files(kind, CANDIDATES, 4, seed=1)
        tasks, config = files.values()
        values = {tag.get("value", "") for tag in ElementTree.fromstring(config).iter()}
        assert {v[1:] for v in values if v.startswith("$")} <= tasks[0]["data"].keys(), kind
