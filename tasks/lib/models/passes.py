"""Which answers share a forward pass in PPO: those of like length, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.lib.models.batches import halved


def lengths_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each prompt with its answer."""
    return [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]


def in_batches(rows: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The rows in batches of like length, the shortest first."""
    order = sorted(rows, key=lambda i: (lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def in_passes(rows: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """The same, cut for a forward pass over whole sequences."""
    return [some for batch in in_batches(rows, lengths, batch_size) for some in halved(batch, lengths)]
