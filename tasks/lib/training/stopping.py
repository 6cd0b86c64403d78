"""A run that is asked to end: it finishes its step, saves, and ends with the status of the signal."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked_to_stop(*numbers: signal.Signals) -> Iterator[list[int]]:
    """In the block, collect these signals instead of dying in the middle of a step."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)

    earlier = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
