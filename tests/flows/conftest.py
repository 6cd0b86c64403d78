"""Small git + dvc workspaces with shell stages, and one Prefect server for all tests of a session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_projects import ENDLESS, ENDLESS_STAGE, PARAMS, PIPELINE, ROOT

from flows import child, telemetry


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed workspace with PIPELINE; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # children run this checkout, whatever is installed
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (tmp_path / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (tmp_path / ".gitignore").write_text(".anneal/\n")
    (tmp_path / "raw.txt").write_text("raw one\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


@pytest.fixture
def endless(project: Path) -> Path:
    """A workspace whose stage never ends and has a grandchild."""
    (project / "dvc.yaml").write_text(ENDLESS)
    (project / "endless.py").write_text(ENDLESS_STAGE)
    (project / "params.yaml").write_text("seed: 1\nthreads: 1\n")
    return project


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one Prefect server; PREFECT_API_URL names it in this process and its children."""
    from flows import server as servers

    if given := servers.given():  # a developer's own saves the 20 seconds that one takes to start
        yield given
        return
    telemetry.switch_off()
    home = tmp_path_factory.mktemp("prefect")
    process, url = servers.start(home, services=True)
    with servers.stopped(process):
        servers.ready(process, url, home)
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()  # a test that came before may have imported prefect without it
        yield url


def environment() -> dict[str, str]:
    """Of a child that runs this checkout."""
    return child.child_environment() | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def anneal() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in the current folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment())

    return run


@pytest.fixture
def start_anneal() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command line in the current folder; what is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
