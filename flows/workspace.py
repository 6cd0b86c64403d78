"""The workspace: one run at a time, and none of the locks that a killed run leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.lib.stage import Problem

LOCK = Path(".anneal") / "run.lock"
FREE_BYTES = 1 << 30  # a run that fills the disk fails late and in the middle of something
DVC_TEMPORARY = Path(".dvc") / "tmp"
USERS_OF_DVC = (
    "dvc",
    "anneal",
    "flows",
    "prefect",
)  # programs, or packages after `python -m`, that may hold DVC's locks

_held: list[int] = []  # the descriptor of the lock that this process holds


def check() -> None:
    """Everything a run needs from the folder before it starts, or a Problem."""
    if not Path("dvc.yaml").is_file():
        raise Problem(f"{Path.cwd().name}: there is no dvc.yaml here; run this in the project's folder")
    if not Path(".dvc").is_dir():
        raise Problem("DVC is not set up here; type `git init && dvc init` (or `dvc init --no-scm` without git)")
    for folder in (Path("."), Path(".dvc")):
        if not os.access(folder, os.W_OK):
            raise Problem(f"{folder.resolve().name}: the folder cannot be written to; nothing was started")
    free = shutil.disk_usage(".").free
    if free < FREE_BYTES:
        raise Problem(
            f"the disk has {free / 2**30:.1f} GiB left, a run needs {FREE_BYTES / 2**30:.0f}; "
            "make room (`dvc gc --workspace` drops old versions of artifacts)"
        )


@contextlib.contextmanager
def held(lock: Path = LOCK) -> Iterator[int]:
    """Hold the workspace for one run; a Problem names the holder. Within one process it may be nested.

    The kernel releases the lock when the last process that has it open is gone, so it cannot go stale. The
    watchdogs of the children have it open too: after `kill -9` the workspace is free when they are done.
    """
    if _held:
        yield _held[0]
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(_holder(os.pread(descriptor, 4096, 0))) from None
        since = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        what = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since, "what": what})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        _held.append(descriptor)
        remove_stale_locks()
        yield descriptor
    finally:
        _held.clear()
        os.close(descriptor)


def _holder(content: bytes) -> str:
    try:
        holder = json.loads(content)
        pid, host, since, what = (holder[key] for key in ("pid", "host", "since", "what"))
    except (ValueError, KeyError, TypeError):
        return "another run is starting in this folder; wait for it to end"
    if host == socket.gethostname() and not _alive(pid):
        return f"the run of process {pid} on {host} was killed and its stages are still ending; try again in 15 seconds"
    return f"process {pid} on {host} ({what}) has been using this folder since {since}; wait for it, or stop it"


def _alive(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def remove_stale_locks(temporary: Path = DVC_TEMPORARY) -> list[str]:
    """Drop what killed dvc processes left in .dvc/tmp/rwlock; return `path (PID)` of each, for the log.

    DVC itself drops entries of a PID that is gone; one that lives on as another process blocks it for ever.
    A live dvc that holds the repository's lock is waited for a little, then named in a Problem.
    """
    wait_for_dvc(temporary / "lock")
    path = temporary / "rwlock"
    try:
        text = path.read_text(encoding="utf-8")
        written = path.stat().st_mtime
    except OSError:
        return []
    removed: list[str] = []
    kept: dict[str, dict[str, Any]] = {}
    try:
        entries = json.loads(text)
        for mode in ("write", "read"):
            kept[mode] = _live(entries.get(mode, {}), written, removed)
    except (ValueError, AttributeError, TypeError, KeyError):
        path.unlink(missing_ok=True)  # cut off by a kill: nothing in it can be trusted
        return [str(path)]
    if removed:
        path.write_text(json.dumps(kept), encoding="utf-8")
    return removed


def _live(entries: dict[str, Any], written: float, removed: list[str]) -> dict[str, Any]:
    """The entries (path -> one holder, or a list of readers) whose holder is alive; names of others go to `removed`."""
    kept: dict[str, Any] = {}
    for path, holders in entries.items():
        live = []
        for holder in holders if isinstance(holders, list) else [holders]:
            if _uses_dvc(int(holder["pid"]), written):
                live.append(holder)
            else:
                removed.append(f"{path} ({holder['pid']})")
        if live:
            kept[path] = live if isinstance(holders, list) else live[0]
    return kept


def _uses_dvc(pid: int, written: float) -> bool:
    """Does the PID still belong to the process that wrote the entry, and not to one that came later?"""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.create_time() <= written + 1 and program_of(process.cmdline()) in USERS_OF_DVC
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def program_of(command: Sequence[str]) -> str:
    """`dvc` of `dvc repro`, `python bin/dvc repro` and `python -m dvc repro`; `flows` of `python -m flows.cli`."""
    words = iter(command)
    program = Path(next(words, "")).name
    if not program.startswith("python"):
        return program
    for word in words:  # of Python: its options, then a module, a script, or code
        if word == "-m":
            return next(words, "").partition(".")[0]
        if word == "-c":
            return ""
        if word in ("-W", "-X"):
            next(words, "")  # the value of that option
        elif not word.startswith("-"):
            return Path(word).name
    return ""


def wait_for_dvc(lock: Path, seconds: float = 10.0) -> None:
    """Wait until no dvc holds the repository's lock, at most so long; then a Problem names the holder."""
    import zc.lockfile

    if not lock.exists():
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            zc.lockfile.LockFile(str(lock)).close()
            return
        except zc.lockfile.LockError:
            if time.monotonic() > deadline:
                pid = lock.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
                raise Problem(f"dvc (process {pid}) is using this folder; wait for it, or stop it") from None
            time.sleep(0.3)
