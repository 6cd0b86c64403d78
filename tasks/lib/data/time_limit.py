"""How long a template may run: a timer of processor time, in the main thread only."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from jinja2.exceptions import SecurityError

SECONDS = 2.0  # of processor time that a render has at least
_MAIN = threading.main_thread().ident


class TooMuch(SecurityError):
    """A template that would make too long a text or run too long."""


class _Watch:
    """Whether a render runs, and its number: what the timer looks at."""

    armed = rendering = False
    number = seen = 0


@contextmanager
def watched() -> Iterator[None]:
    """One timer for many renders: it ticks every SECONDS and stops a render that it has seen before.

    So a render gets SECONDS to twice as much; to set a timer for each would take longer than most of them.
    """
    if threading.get_ident() != _MAIN or _Watch.armed:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _tick)
    _Watch.armed = True
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        _Watch.armed = False
        signal.signal(signal.SIGVTALRM, before)


def _tick(number: int, frame: FrameType | None) -> None:
    if _Watch.rendering and _Watch.seen == _Watch.number:
        raise TooMuch(f"runs for more than {SECONDS:g} s")
    _Watch.seen = _Watch.number


class time_limit:
    """Raise TooMuch where one render runs for more than SECONDS of processor time, twice that when `watched`.

    In the main thread only. A class, since a generator's context manager costs as much as a short render.
    """

    def __enter__(self) -> None:
        self._main = threading.get_ident() == _MAIN
        self._alone = ExitStack() if self._main and not _Watch.armed else None
        if self._alone:
            self._alone.enter_context(watched())
        if self._main:
            _Watch.number += 1
            _Watch.rendering = True

    def __exit__(self, *_: object) -> None:
        if self._main:
            _Watch.rendering = False
        if self._alone:
            self._alone.close()
