"""The command line: quick help, one-line errors, exit status not 0."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_projects import ROOT

Anneal = Callable[..., subprocess.CompletedProcess[str]]


def test_help_loads_nothing_heavy(workspace: Path) -> None:
    code = (
        "import sys, flows.cli\n"
        "try: flows.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('prefect', 'dvc', 'torch', 'pydantic', 'rich', 'ruamel') if m in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.perf_counter() - started < 3  # 0.1 s on a quiet machine


def test_status_says_what_would_run_and_why(project: Path, anneal: Anneal) -> None:
    subprocess.run(["dvc", "repro", "-q"], check=True)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("{x: 1}", "{x: 2}"))
    lines = anneal("status").stdout.splitlines()
    assert lines[1].split() == ["left", "runs", "params.yaml:", "left.x", "1", "->", "2"]
    assert lines[2].split() == ["right", "unchanged"]
    assert lines[3].split() == ["ends@a", "may", "run", "behind", "left"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--parallel", "0"], "--parallel needs at least 1"),
        (["run", "--set", "lfet.x=1"], "did you mean left?"),
        (["run", "--preset", "presets/none.yaml"], "presets/none.yaml does not exist"),
        (["status", "strat"], "did you mean start?"),
    ],
)
def test_a_mistake_is_one_line(project: Path, anneal: Anneal, arguments: list[str], said: str) -> None:
    done = anneal(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("anneal: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_outside_of_a_project_it_says_where_to_go(workspace: Path, anneal: Anneal) -> None:
    done = anneal("run")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "there is no dvc.yaml here" in done.stderr
