"""The watchdog between a run and one of its children: when the run is gone, so is all that the child started.

Started as `python -I -S guard.py COMMAND...` with a pipe as standard input; only the run holds its other end.
The pipe closes when the run wants the child stopped and also when the run dies, SIGKILL included. Then the
command's process group gets SIGINT (dvc puts its locks in order, a stage that trains saves), SIGTERM, at last SIGKILL.
Only the standard library, so that it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))  # seconds before the next one
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run the command in its own process group; return its exit status, 128 + n after signal n."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN: children would inherit that
    adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_stop_at_end_of_pipe, args=(child,), daemon=True).start()
    status = child.wait()
    kill_descendants()
    return status if status >= 0 else 128 - status


def _stop_at_end_of_pipe(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    for number, seconds in GRACE:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
            return


def adopt_orphans() -> None:
    """On Linux what loses its parent becomes our child: even a process with its own session is found."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    while found := _descendants(os.getpid()):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _descendants(root: int) -> list[int]:
    """Every process below `root`, from /proc; none where there is no /proc."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                if fields[0] != "Z" or int(fields[1]) == root:
                    parents[int(entry)] = int(fields[1])
    below, grown = {root}, True
    while grown:
        found = {pid for pid, parent in parents.items() if parent in below} - below
        below, grown = below | found, bool(found)
    return sorted(below - {root})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
