"""The graph is dvc.yaml's, with the reasons to run each stage; mistakes in it are one line."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from flows.graph import Locked, read_graph, read_lock
from tasks.lib.stage import Problem


def test_stages_come_in_dependency_order_with_their_edges(project: Path) -> None:
    graph = read_graph()
    assert list(graph.nodes) == ["start", "left", "right", "ends@a", "ends@b", "behind"]
    assert graph.edges()["ends@b"] == ("left",)
    assert graph.nodes["right"].params == ("right",)
    assert graph.changes["ends@a"] == ["left.txt deleted", "end_a.txt deleted"]


def test_a_target_brings_what_it_depends_on_and_a_foreach_all_its_items(project: Path) -> None:
    assert list(read_graph(["behind"]).nodes) == ["start", "right", "behind"]
    assert list(read_graph(["ends"]).nodes) == ["start", "left", "ends@a", "ends@b"]
    assert list(read_graph(["ends@b"]).nodes) == ["start", "left", "ends@b"]
    with pytest.raises(Problem, match=r"there is no stage lefty; did you mean left\?"):
        read_graph(["lefty"])


def test_a_foreach_without_entries_is_no_stage_and_as_a_target_names_its_key(project: Path) -> None:
    with Path("dvc.yaml").open("a") as file:
        file.write("  heads:\n    foreach: ${left.tasks}\n    do: {cmd: 'true', outs: ['${key}.txt']}\n")
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("left: {x: 1}", "left: {x: 1, tasks: {}}"))
    assert list(read_graph().nodes) == ["start", "left", "right", "ends@a", "ends@b", "behind"]
    with pytest.raises(Problem, match=r"params\.yaml: left\.tasks is empty; heads is a stage per entry"):
        read_graph(["heads"])


def test_a_changed_parameter_is_named(project: Path) -> None:
    subprocess.run(["dvc", "repro", "-q"], check=True)
    assert not any(read_graph().changes.values())
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("2e-5", "3e-5"))
    changes = read_graph().changes
    assert changes.pop("right") == ["params.yaml: right.y 2e-05 -> 3e-05"]
    assert not any(changes.values())
    assert read_lock()["left"] == Locked(
        {"start.txt": short(b"raw one\n")},
        {"left.txt": short(b"ra"), "reports/left.json": short(b'{"loss": 0.25}\n')},
    )


def short(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()[:8]


def test_a_missing_source_file_is_named_before_anything_runs(project: Path) -> None:
    Path("raw.txt").unlink()
    with pytest.raises(Problem, match=r"start: raw\.txt is missing and no stage writes it"):
        read_graph()


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("dvc.yaml", "stages: [", "dvc: .*dvc.yaml"),
        ("dvc.yaml", "stages:\n  a:\n    cmd: x\n    dps: []\n", "dvc: .*dvc.yaml.*dps"),
        ("dvc.yaml", "stages:\n a: {cmd: x, outs: [o]}\n b: {cmd: x, outs: [o]}\n", "dvc: .*'o' is spec"),
        ("dvc.yaml", "stages:\n a: {cmd: x, deps: [o], outs: [o]}\n", "dvc: .*both a dependency and an out"),
        ("dvc.yaml", "stages:\n  a: {cmd: 'x ${sft.y}'}\n", "dvc: .*sft"),
        ("dvc.lock", "schema: '2.0'\nstages: {a: [", "dvc: .*dvc.lock"),
    ],
)
def test_a_broken_file_is_one_line(project: Path, file: str, text: str, said: str) -> None:
    Path(file).write_text(text)
    with pytest.raises(Problem, match=said) as raised:
        read_graph()
    assert "\n" not in str(raised.value)
