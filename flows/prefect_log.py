"""What Prefect prints: one line per failure, and none of the errors of a server that is gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from httpx import TransportError

from flows import server
from tasks.lib.stage import Problem

Log = logging.Logger | logging.LoggerAdapter[Any]


def shorten() -> None:
    """Shorten what Prefect logs in this process."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(OneLine())


class OneLine(logging.Filter):
    """Prefect prints a failed state three times, with the whole tail of the log: one line is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0] is None:
            return False  # "Task run failed with state ..." and no exception
        if record.exc_info and isinstance(record.exc_info[1], (Problem, TransportError)):
            record.exc_info = None  # a user's mistake needs no traceback, nor does a server that is gone
        message = record.getMessage()
        if message.startswith("View at ") and server.is_temporary():
            return False
        if message.startswith("Finished in state "):
            record.msg, record.args = message.splitlines()[0].split("\\n")[0], ()
        return True


@contextmanager
def server_may_be_gone(log: Log | None) -> Iterator[None]:
    """Training does not stop for a Prefect server that does; what it missed is in .anneal/."""
    try:
        yield
    except Exception as error:
        if log:
            first = (str(error) or type(error).__name__).splitlines()[0]
            log.warning(f"the Prefect server did not take this ({first}); see .anneal for what it missed")
