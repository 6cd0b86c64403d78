"""One run per workspace; what killed runs leave behind does not block the next one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_projects import ROOT

from flows import workspace as subject
from tasks.lib.stage import Problem

HOLDER = """
import time
from flows import workspace
with workspace.held():
    print("held", flush=True)
    time.sleep(600)
"""
DVC = """
import sys, time, zc.lockfile
held = zc.lockfile.LockFile(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""
# Until a child has printed something it may still be its parent's fork, with the parent's command line
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


@contextmanager
def sleeping(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python that sleeps, once it is up; it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-S", *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_is_refused_naming_the_holder(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(Problem, match=rf"process {holder.pid} on \S+ \(-c\) has been using this folder since 20"),
            subject.held(),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with subject.held(), subject.held() as nested:  # free again at once, and may be nested
        assert os.fstat(nested).st_ino == subject.LOCK.stat().st_ino


def test_stale_entries_of_dvc_are_removed_and_live_ones_kept(project: Path) -> None:
    script = project / "dvc"
    script.write_text(SLEEPER)
    gone = subprocess.Popen(["true"])
    gone.wait()
    with sleeping("-c", SLEEPER) as reused, sleeping(str(script), "repro") as live:
        path = project / ".dvc" / "tmp" / "rwlock"
        path.parent.mkdir()
        entries = {p: {"pid": pid, "cmd": "dvc repro"} for p, pid in (("a", reused.pid), ("b", live.pid))}
        reader = {"c": [{"pid": gone.pid, "cmd": "dvc repro"}]}
        path.write_text(json.dumps({"write": entries, "read": reader}))
        assert subject.remove_stale_locks() == [f"a ({reused.pid})", f"c ({gone.pid})"]
        assert json.loads(path.read_text()) == {"write": {"b": entries["b"]}, "read": {}}


def test_a_dvc_that_came_after_the_entry_is_not_its_owner(project: Path) -> None:
    script = project / "dvc"
    script.write_text(SLEEPER)
    path = project / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir()
    with sleeping(str(script), "status") as later:
        path.write_text(json.dumps({"write": {"a": {"pid": later.pid, "cmd": "dvc repro"}}}))
        os.utime(path, (time.time() - 3600,) * 2)
        assert subject.remove_stale_locks() == [f"a ({later.pid})"]


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("dvc repro", "dvc"),
        ("/venv/bin/python3.11 /venv/bin/dvc repro", "dvc"),
        ("python -X dev -P -m dvc repro", "dvc"),
        ("python -P -m flows.cli run", "flows"),
        ("python -m prefect.flow_engine", "prefect"),
        ("python /home/dvc/anneal/train.py dvc prefect", "train.py"),
        ("vim dvc.yaml", "vim"),
        ("python -c pass dvc repro", ""),
        ("", ""),
    ],
)
def test_a_word_of_a_path_or_an_argument_makes_no_program(command: str, program: str) -> None:
    assert subject.program_of(command.split()) == program


def test_a_lock_file_that_a_kill_cut_off_is_dropped(project: Path) -> None:
    path = project / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir()
    path.write_text('{"write": {"a"')
    assert subject.remove_stale_locks()
    assert not path.exists()


def test_a_dvc_at_work_is_named(project: Path) -> None:
    lock = project / ".dvc" / "tmp" / "lock"
    lock.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", DVC, str(lock)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(Problem, match=f"dvc .process {holder.pid}. is using this folder"):
            subject.wait_for_dvc(lock, seconds=0.1)
    finally:
        holder.kill()
        holder.wait()
    subject.wait_for_dvc(lock, seconds=0.1)  # the kernel lets go of a dead process's lock


def test_what_a_folder_lacks_is_said_at_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject.check()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, (1 << 40) - (1 << 28), 1 << 28))
    with pytest.raises(Problem, match=r"the disk has 0\.2 GiB left"):
        subject.check()
    shutil.rmtree(".dvc")
    with pytest.raises(Problem, match="git init && dvc init"):
        subject.check()
    Path("dvc.yaml").unlink()
    with pytest.raises(Problem, match=r"no dvc\.yaml here"):
        subject.check()
