"""Forks of the warm process are what the commands would have been: streams, status, signals, death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from small_projects import ROOT, wait_until

from flows import child
from tasks.lib.warm import ADDRESS

PROBE = """
import atexit, os, subprocess, sys, time
atexit.register(print, "last words")
print(sys.argv[1], "fractions" in sys.modules, os.getcwd(), os.environ["WHO"], __name__)
print("aside", file=sys.stderr)
if sys.argv[1] == "sleep":
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    open("asleep", "w").close()
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(130)
if sys.argv[1] == "crash":
    raise ValueError("crashed")
sys.exit(sys.argv[1] if sys.argv[1] == "words" else 7)
"""
ASK = """
import os, sys
from tasks.lib.warm import hand_over
hand_over(os.environ["ANNEAL_WARM"], "probe", sys.argv[1:])
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A warm process that has imported fractions."""
    start = f"from flows import warm; warm.LIBRARIES = ('fractions', 'no.such'); warm.main('{tmp_path}/warm')"
    process = child.start([sys.executable, "-c", start], subprocess.DEVNULL, PYTHONPATH=str(ROOT))
    assert wait_until(Path(tmp_path, "warm").exists)
    yield f"{tmp_path}/warm"
    child.stop_child(process)
    assert process.returncode == 130


@pytest.fixture
def ask(address: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the probe as a fork of it, in its own folder and environment."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "probe.py").write_text(PROBE)
    environment = os.environ | {ADDRESS: address, "PYTHONPATH": str(ROOT), "WHO": "I"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", ASK, *arguments], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


def sleeping(folder: Path) -> list[psutil.Process]:
    """The probe and what it started, wherever they hang."""
    return [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder) and p.status() != "zombie"]


def test_a_fork_is_the_command(ask: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    first, second, third = ask("status"), ask("words"), ask("crash")
    assert first.communicate() == (f"status True {tmp_path}/here I __main__\nlast words\n", "aside\n")
    assert first.returncode == 7
    assert second.communicate()[1] == "aside\nwords\n"
    assert second.returncode == 1
    assert third.communicate()[1].endswith("\nValueError: crashed\n")
    assert third.returncode == 1


def test_a_signal_reaches_the_fork(ask: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    asking = ask("sleep")
    assert wait_until(Path(tmp_path, "here", "asleep").exists)
    asking.send_signal(signal.SIGINT)
    assert asking.wait(20) == 130
    assert wait_until(lambda: not sleeping(tmp_path / "here"))


def test_nothing_outlives_a_command_that_is_killed(ask: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    asking = ask("sleep")
    assert wait_until(Path(tmp_path, "here", "asleep").exists)
    assert len(sleeping(tmp_path / "here")) > 2  # the asking one, the fork, its child
    asking.kill()
    assert wait_until(lambda: not sleeping(tmp_path / "here"))


def test_without_a_warm_process_a_stage_imports_for_itself(tmp_path: Path) -> None:
    environment = os.environ | {ADDRESS: str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.choose"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == "anneal: params.yaml does not exist; run this in the project's folder\n"
    assert done.returncode == 1


def test_a_stage_is_a_fork_and_its_own_children_are_not(address: str, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text((ROOT / "tasks" / "__init__.py").read_text())
    (tmp_path / "tasks" / "lib").symlink_to(ROOT / "tasks" / "lib")
    (tmp_path / "tasks" / "probe.py").write_text(
        "import os, sys; print(*sys.argv[1:], 'fractions' in sys.modules, 'ANNEAL_WARM' in os.environ)"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tasks.probe", "a b", "c"],
        cwd=tmp_path, env=os.environ | {ADDRESS: address}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "a b c True False\n"


def test_dvc_is_one_fork_that_asks_for_no_other(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "no project"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "flows.dvc_child", "base"],
        cwd=folder, env=os.environ | {ADDRESS: address, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dvc: you are not inside of a DVC repository")
