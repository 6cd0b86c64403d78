"""A prompt and its answers in one row of ids: what all share once, then a branch per answer.

A branch's tokens see what is shared and their own branch, not the others, and count their positions from the
end of what is shared: to each branch it is a sequence of its own. For models that take a mask of their own
(B, 1, T, T) and positions: those with full attention, of transformers' Llama, Qwen, Mistral kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Sequences with a common beginning: of every token its id, its position and its branch, 0 for what all share."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    ends: list[int]  # of each sequence, the place of its last token in `ids`


def common(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share; the last token of each is always its own."""
    shared = 0
    while all(shared < len(each) - 1 and each[shared] == sequences[0][shared] for each in sequences):
        shared += 1
    return shared


def branched(sequences: Sequence[Sequence[int]], shared: int) -> Row:
    """Sequences that share their first `shared` tokens as one row."""
    row = Row([*sequences[0][:shared]], [*range(shared)], [0] * shared, [])
    for number, sequence in enumerate(sequences, 1):
        row.ids.extend(sequence[shared:])
        row.positions.extend(range(shared, len(sequence)))
        row.branches.extend([number] * (len(sequence) - shared))
        row.ends.append(len(row.ids) - 1)
    return row


def padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and branches (B, T). Padding is a branch -1, so that no row of the mask is empty."""
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions = torch.zeros_like(ids)
    branches = torch.full_like(ids, -1)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids)
        positions[number, :length] = torch.tensor(row.positions)
        branches[number, :length] = torch.tensor(row.branches)
    return ids, positions, branches


def branch_mask(branch: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores (B, 1, T, T) for branches (B, T): 0 to what a token sees, the least
    number elsewhere."""
    of_reader, of_read = branch[:, :, None], branch[:, None, :]
    sees = ((of_read == 0) | (of_read == of_reader)).tril()  # (B, T, T), causal
    mask = torch.zeros(sees.shape, dtype=dtype, device=branch.device)
    return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]
