"""The whole line as a user runs it, in a fresh clone: by the flow, by `dvc repro`, again, and on real data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.lib.stage import read_yaml

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
embedded = pytest.mark.xdist_group("embedded")  # one process, which runs the line once


def clone(folder: Path) -> Path:
    """What is committed, and nothing else; without the lock, so that nothing counts as done."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def states(folder: Path) -> dict[str, str]:
    stages = json.loads((folder / ".anneal/run.json").read_text())["stages"]
    return {name: entry["state"] for name, entry in stages.items()}


@pytest.fixture(scope="module")
def by_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("flow") / "anneal")
    run(folder, "flows.cli", "run", "--preset", "presets/smoke.yaml")
    return folder


@embedded
def test_the_flow_builds_a_release_that_verifies(by_flow: Path) -> None:
    assert set(states(by_flow).values()) == {"Completed"}
    run(by_flow, "flows.cli", "verify", "export/release")


@embedded
def test_a_second_run_trains_nothing(by_flow: Path) -> None:
    lock, started = (by_flow / "dvc.lock").read_bytes(), time.monotonic()
    run(by_flow, "flows.cli", "run")
    assert set(states(by_flow).values()) == {"Cached"}
    assert (by_flow / "dvc.lock").read_bytes() == lock
    assert time.monotonic() - started < 120  # not a benchmark: training alone would take longer


@embedded
def test_dvc_repro_from_scratch_gives_the_same_lock(by_flow: Path, tmp_path: Path) -> None:
    """The two ways to run are equal, and two runs from scratch give the same bytes: the lock holds every hash."""
    folder = clone(tmp_path / "anneal")
    (folder / "params.yaml").write_bytes((by_flow / "params.yaml").read_bytes())
    run(folder, "dvc", "repro", "--quiet")
    ours, theirs = (read_yaml(place / "dvc.lock")["stages"] for place in (folder, by_flow))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_real_input_to_a_released_gguf(tmp_path: Path, shared: Path) -> None:
    folder = clone(tmp_path / "anneal")
    done = run(folder, "flows.cli", "run", "--preset", "presets/real-small.yaml", ANNEAL_DATA=str(shared))
    print(done.stdout[-6000:])
    assert set(states(folder).values()) == {"Completed"}
    assert list((folder / "export/release").rglob("*.gguf"))
    preferences = json.loads((folder / "reports/preferences.json").read_text())
    assert preferences["files"] == 2
