"""Work shared by the processes of one launch (torchrun, accelerate). In a single process all of this does nothing.

Rows are dealt out in whole batches, and everybody gets all results: what follows is then the same in every process.
Sums over batches are the sums of one process in another order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


def rank() -> int:
    """The number of this process, 0 to `world_size() - 1`."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """True in the one process that writes models, reports and checkpoints."""
    return rank() == 0


def is_sharded() -> bool:
    """True where accelerate spreads the trained model itself over the processes (FSDP, DeepSpeed ZeRO)."""
    return "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))


def wait_for_all() -> None:
    """Return once every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def first_before_others() -> Iterator[None]:
    """The block runs in the first process, and then in the others: it may remove what they would read."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def share_of_process(batches: Sequence[T]) -> Sequence[T]:
    """The batches that this process works on."""
    return batches[rank() :: world_size()]


def spread(batches: Sequence[list[int]], work: Callable[[list[int]], Iterable[T]]) -> list[T]:
    """The results of rows 0 to N-1, in every process. `batches` hold each row once; `work(batch)` does one of them."""
    numbered: list[tuple[int, T]] = []
    for batch in share_of_process(batches):
        numbered += zip(batch, work(batch), strict=True)
    return [result for _, result in sorted(joined(numbered), key=lambda pair: pair[0])]


def joined(rows: list[T]) -> list[T]:
    """The rows of the first process, of the second, and so on, in every process."""
    if world_size() == 1:
        return rows
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, rows)
    return list(chain.from_iterable(gathered))


def by_first(work: Callable[[], T]) -> T:
    """What `work()` gives in the first process, in every process."""
    if world_size() == 1:
        return work()
    result: list[Any] = [work() if is_first() else None]
    dist.broadcast_object_list(result)
    return result[0]


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Gradients become the sum over the processes; a process without a pass counts as 0."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


def combined(values: dict[str, float], largest: Sequence[str] = ()) -> dict[str, float]:
    """Figures summed over the processes; of those named in `largest` the maximum."""
    if world_size() == 1:
        return values
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, values)
    total: dict[str, float] = {}
    for key in values:
        of_processes = [each[key] for each in gathered]
        total[key] = max(of_processes) if key in largest else sum(of_processes)
    return total
