"""The whole pipeline as a user runs it, in a fresh clone: by the flow, by `dvc repro`, again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from clones import clone, run, states

from tasks.lib.stage import read_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clone(tmp_path_factory.mktemp("flow") / "anneal")
    run(folder, "flows.cli", "run", "--preset", "presets/smoke.yaml")
    return folder


def test_the_flow_builds_a_release_that_verifies(by_flow: Path) -> None:
    assert set(states(by_flow).values()) == {"Completed"}
    run(by_flow, "flows.cli", "verify", "export/release")


def test_a_second_run_trains_nothing(by_flow: Path) -> None:
    lock, started = (by_flow / "dvc.lock").read_bytes(), time.monotonic()
    run(by_flow, "flows.cli", "run")
    assert set(states(by_flow).values()) == {"Cached"}
    assert (by_flow / "dvc.lock").read_bytes() == lock
    assert time.monotonic() - started < 120  # not a benchmark: training alone would take longer


def test_dvc_repro_from_scratch_gives_the_same_lock(by_flow: Path, tmp_path: Path) -> None:
    """The two ways to run are equal, and two runs from scratch give the same bytes: the lock holds every hash."""
    folder = clone(tmp_path / "anneal")
    (folder / "params.yaml").write_bytes((by_flow / "params.yaml").read_bytes())
    run(folder, "dvc", "repro", "--quiet")
    ours, theirs = (read_yaml(place / "dvc.lock")["stages"] for place in (folder, by_flow))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
