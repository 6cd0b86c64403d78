"""A temporary Prefect server for a run without one: loopback, files in .anneal/prefect, ends with the run."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flows import child
from tasks.lib.stage import Problem

HOME = Path(".anneal") / "prefect"
STARTUP_SECONDS = 300  # 10 on a quiet machine, the first time 20: it makes its database
# A temporary server runs no schedules and has nobody to look at it; what it must do is record task runs.
UNUSED = ("SCHEDULER", "LATE_RUNS", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP", "FOREMAN", "TRIGGERS")


_temporary: list[str] = []


def is_temporary() -> bool:
    """Is the server of this process one that `start` started? It shows no pages."""
    return bool(_temporary)


def given() -> str | None:
    """The address of the user's own server, if PREFECT_API_URL names one."""
    return os.environ.get("PREFECT_API_URL") or None


def start(home: Path = HOME, pages: bool = False, services: bool = False) -> tuple[subprocess.Popen[str], str]:
    """Start a server on a free loopback port and return it at once with its API address; see `ready`.

    `pages` serves the UI too, `services` runs schedules too: both take longer to start. Sets PREFECT_HOME and
    PREFECT_API_URL for this process and its children: the user's profile is not read.
    """
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["PREFECT_HOME"] = str(home.resolve())
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")  # it does not come back: do not wait a minute per call
    settings = {"PREFECT_UI_ENABLED": "1" if pages else "0", "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"}
    if not services:
        settings |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in UNUSED}
    command = [sys.executable, "-P", "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        with (home / "server.log").open("wb") as log:
            process = child.start([*command, *options], log.fileno())
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    _temporary.append(os.environ["PREFECT_API_URL"])
    return process, _temporary[-1]


def ready(process: subprocess.Popen[str], url: str, home: Path = HOME, seconds: float = STARTUP_SECONDS) -> None:
    """Wait until the server answers; a Problem with the end of its log when it does not."""
    host = url.removeprefix("http://").split("/")[0]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(host, timeout=5)
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    log = (home / "server.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = log[-1] if log else f"no answer after {seconds:.0f} seconds"
    raise Problem(f"the temporary Prefect server did not start: {reason} ({home}/server.log)")


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop the server at the end, when it has all that was sent to it, and forget its address."""
    try:
        yield
    finally:
        if "prefect" in sys.modules:  # else prefect tries for a minute at exit to reach a server that is gone
            from prefect.events.worker import EventsWorker
            from prefect.logging.handlers import APILogWorker

            for service in (APILogWorker, EventsWorker):
                service.drain_all(timeout=5, at_exit=False)
        child.stop_child(process)
        _temporary.clear()
        os.environ.pop("PREFECT_API_URL", None)
        os.environ.pop("PREFECT_HOME", None)
