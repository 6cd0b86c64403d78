"""Rows of token ids in batches: which rows a batch holds, and the batch as padded tensors.

row      one sequence of token ids: a prompt, a prompt with its answer, or a pack
batch    the rows of one forward pass; here their numbers, on a device a tensor (B, T)
step     what one step of the optimiser sees: a batch, or several whose gradients add up
pass     in tasks/lib/rl, where a Batch is all the data of an iteration: what is called a batch here
pack     several samples in one row that do not see each other (tasks/lib/finetuning/packing.py)
length   how many tokens a row has
padding  what fills a row up to the longest of its batch; masks come from lengths, for the pad token may be the EOS

A batch costs its longest row times its rows, so rows of like length share one.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev

import torch
from torch import Tensor

from tasks.lib.models.pass_size import passes_within

UNLIKE = 0.7  # standard deviation of the lengths over their mean, from which batches are counted in tokens
BATCH_COSTS = 128  # tokens that pass in the time that a forward and backward pass takes whatever its size


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and `is_token` (B, T), True at tokens, padded on the left (for generation)."""
    return _padded(rows, pad_id, left=True)


def right_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and `is_token` (B, T), True at tokens, padded on the right (for scoring)."""
    return _padded(rows, pad_id, left=False)


def _padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=0)
    ids: list[list[int]] = []
    is_token: list[list[bool]] = []
    for row in rows:
        missing = width - len(row)
        if left:
            ids.append([pad_id] * missing + list(row))
            is_token.append([False] * missing + [True] * len(row))
        else:
            ids.append(list(row) + [pad_id] * missing)
            is_token.append([True] * len(row) + [False] * missing)
    return torch.tensor(ids, dtype=torch.long), torch.tensor(is_token, dtype=torch.bool)


def position_ids(is_token: Tensor) -> Tensor:
    """Positions (B, T): 0 at the first token of a row, wherever the padding is; 0 on left padding."""
    return (is_token.long().cumsum(dim=1) - 1).clamp(min=0)


def lengths_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each prompt with its answer."""
    return [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]


def batches_by_length(
    lengths: Sequence[int],
    batch_size: int,
    rows: Iterable[int] | None = None,
    *,
    longest_first: bool = False,
    tokens: int | None = None,
) -> list[list[int]]:
    """The numbers of all rows, or of those named, in batches of like length, the shortest first.

    With `longest_first` memory runs out at once or never. A batch of more than `tokens` tokens, padding included, is
    cut into smaller ones.
    """
    sign = -1 if longest_first else 1
    named = range(len(lengths)) if rows is None else rows
    batches = _cut(sorted(named, key=lambda row: (sign * lengths[row], row)), batch_size)
    if tokens is None:
        return batches
    small: list[list[int]] = []
    for batch in batches:
        small += passes_within(tokens, batch, lambda part: len(part) * max(lengths[row] for row in part))
    return small


def tight_batches(
    lengths: Sequence[int], batch_size: int, rows: Iterable[int] | None = None, *, tokens: int | None = None
) -> list[list[int]]:
    """`batches_by_length`, of which those that would be padded much are halved."""
    batches: list[list[int]] = []
    for batch in batches_by_length(lengths, batch_size, rows, tokens=tokens):
        batches += halved(batch, lengths)
    return batches


def halved(batch: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Rows in order of length, halved and halved again for as long as that saves more padding than a pass costs.

    A forward and backward pass costs, apart from its tokens, about as much as `BATCH_COSTS` tokens: measured on a model
    of a million parameters on one core, where a third of all columns in the batches of PPO was padding.
    """
    rows = sorted(batch, key=lambda row: (lengths[row], row))
    half = len(rows) // 2
    if not half or half * (lengths[rows[-1]] - lengths[rows[half - 1]]) <= BATCH_COSTS:
        return [rows]
    return halved(rows[:half], lengths) + halved(rows[half:], lengths)


def shuffled_batches(lengths: Sequence[int], batch_size: int, seed: int, *, mix: int = 50) -> list[list[int]]:
    """Every row number once, in shuffled batches of about equal length (drawn from `mix` batches at a time).

    The short batch, if any, is the last. The order depends on the arguments alone: a resumed run has it too.
    """
    chance = random.Random(seed)
    order = list(range(len(lengths)))
    chance.shuffle(order)
    batches: list[list[int]] = []
    for drawn in _cut(order, batch_size * mix):
        batches += _cut(sorted(drawn, key=lambda row: -lengths[row]), batch_size)
    short = [batch for batch in batches if len(batch) < batch_size]
    whole = [batch for batch in batches if len(batch) == batch_size]
    chance.shuffle(whole)
    return whole + short


def budget_of(lengths: Sequence[int], batch_size: int) -> int | None:
    """Tokens of a batch of `batch_size` rows of mean length; None where the rows are of like length.

    In batches of as many rows each, a token of a short row would move the weights more than one of a long row.
    """
    mean = fmean(lengths)
    return round(batch_size * mean) if pstdev(lengths) >= UNLIKE * mean else None


def token_batches(lengths: Sequence[int], tokens: int, seed: int, *, multiple_of: int = 1) -> list[list[int]]:
    """Every row number once, in shuffled batches of equal length and at most `tokens` tokens, padding included.

    A longer row has a batch of its own. Rows of equal length change places with the seed, batches too; how many
    there are does not depend on it. The largest are halved until their number is a multiple of `multiple_of`.
    """
    chance = random.Random(seed)
    order = list(range(len(lengths)))
    chance.shuffle(order)
    order.sort(key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in order:
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    while len(batches) % multiple_of:
        largest = batches.pop(max(range(len(batches)), key=lambda number: len(batches[number])))
        batches += [largest[::2], largest[1::2] or largest]  # a single row is trained twice
    chance.shuffle(batches)
    return batches


def _cut(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]
