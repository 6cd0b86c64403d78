"""Child processes that die with the run: each under its own watchdog (guard.py), in its own process group."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.telemetry import child_environment
from tasks.lib.warm import ADDRESS

WARM = Path(".anneal") / "warm"  # relative: the path of a socket has at most 107 bytes
GUARD = Path(__file__).with_name("guard.py")
TAIL = 30  # lines of a failed child that go into its state and message

_warm: list[subprocess.Popen[str]] = []  # the warm process of this run


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit status and the last lines that it printed."""

    status: int
    tail: list[str]


def start(
    command: Sequence[str], output: int, inherit: Sequence[int] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start a command under its watchdog. It stops when its `stdin` is closed, or when this process is gone.

    `inherit` are descriptors that the watchdog keeps open: the lock of the workspace stays held until
    the last child of a killed run is gone.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,  # universal newlines: the \r of a progress bar ends a line too
        encoding="utf-8",
        errors="replace",
        env=child_environment() | environment,
        pass_fds=tuple(inherit),
        start_new_session=True,  # Ctrl-C reaches the run alone, which then stops its children
    )


def stop_child(child: subprocess.Popen[str], seconds: float = 20.0) -> None:
    """Close the pipe and wait for the watchdog to end everything."""
    assert child.stdin is not None
    with contextlib.suppress(OSError):
        child.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(seconds)


@contextlib.contextmanager
def warm_process(lock: int) -> Iterator[None]:
    """In the block there is a warm process (warm.py); once it listens, children are its forks. May be nested."""
    if _warm:
        yield
        return
    WARM.unlink(missing_ok=True)  # of a run that was killed; the workspace's lock keeps out a second one
    _warm.append(start([sys.executable, "-P", "-m", "flows.warm", str(WARM)], subprocess.DEVNULL, (lock,)))
    try:
        yield
    finally:
        stop_child(_warm.pop())
        WARM.unlink(missing_ok=True)


@dataclass
class Children:
    """The children of one run. After `stop` the running ones end and no other starts."""

    inherit: tuple[int, ...] = ()
    stopping: threading.Event = field(default_factory=threading.Event)
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: Sequence[str], on_line: Callable[[str], None]) -> Ended:
        """Run a command, hand every line of its output to `on_line`, return how it ended (130: stopped)."""
        with self._lock:
            if self.stopping.is_set():
                return Ended(130, ["stopped before it started"])
            address = {ADDRESS: str(WARM)} if _warm else {}
            child = start(command, subprocess.PIPE, self.inherit, **address)
            self._running.add(child)
        tail: deque[str] = deque(maxlen=TAIL)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if text := line.rstrip():
                    tail.append(text)
                    on_line(text)
            return Ended(child.wait(), list(tail))
        finally:
            stop_child(child)
            with self._lock:
                self._running.discard(child)

    def stop(self) -> None:
        """End all children: first SIGINT, after ten seconds SIGTERM, then SIGKILL (guard.py)."""
        self.stopping.set()
        with self._lock:
            running = list(self._running)
        for child in running:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()
        for child in running:
            stop_child(child)
