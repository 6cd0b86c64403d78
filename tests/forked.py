"""Several processes of one test, forked because importing TRL takes seconds. Used by the tests of ranks."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch


def in_processes(count: int, work: Any, *arguments: Any) -> None:
    """Run `work(rank, *arguments)` in `count` processes; an error in one of them is raised here."""
    torch.multiprocessing.start_processes(_work, (work, arguments), nprocs=count, start_method="fork")


def _work(rank: int, work: Any, arguments: tuple[Any, ...]) -> None:
    work(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what the parent wants done at its end, Prefect's threads say, does not work in a fork
