"""The whole pipeline on real data: a real small checkpoint, tables, templates and rankings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clones import clone, run, states

pytestmark = pytest.mark.slow


def test_real_input_to_a_released_gguf(tmp_path: Path, shared: Path) -> None:
    folder = clone(tmp_path / "anneal")
    done = run(folder, "flows.cli", "run", "--preset", "presets/real-small.yaml", ANNEAL_DATA=str(shared))
    print(done.stdout[-6000:])
    assert set(states(folder).values()) == {"Completed"}
    assert list((folder / "export/release").rglob("*.gguf"))
    preferences = json.loads((folder / "reports/preferences.json").read_text())
    assert preferences["files"] == 2
