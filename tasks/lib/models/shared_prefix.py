"""A prompt and its answers in one row of ids: what all share once, then a branch per answer.

A branch's tokens see what is shared and their own branch, not the others, and count their positions from the
end of what is shared: to each branch it is a sequence of its own. For models that take a mask of their own
(B, 1, T, T) and positions: those with full attention, of transformers' Llama, Qwen, Mistral kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Row = tuple[list[int], list[int], list[int], list[int]]


def common(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share; the last token of each is always its own."""
    shared = 0
    while all(shared < len(s) - 1 and s[shared] == sequences[0][shared] for s in sequences):
        shared += 1
    return shared


def branched(sequences: Sequence[Sequence[int]], shared: int) -> Row:
    """(ids, positions, branch of every token, places of the last tokens); branch 0 is what all share."""
    ids, positions, branch, ends = [*sequences[0][:shared]], [*range(shared)], [0] * shared, []
    for number, sequence in enumerate(sequences, 1):
        own = sequence[shared:]
        ids += own
        positions += range(shared, len(sequence))
        branch += [number] * len(own)
        ends.append(len(ids) - 1)
    return ids, positions, branch, ends


def padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and branches (B, T). Padding is a branch -1, so that no row of the mask is empty."""
    width = max(len(ids) for ids, _, _, _ in rows)
    ids, positions, branch = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    branch -= 1
    for place, (tokens, at, belongs, _) in enumerate(rows):
        for target, values in ((ids, tokens), (positions, at), (branch, belongs)):
            target[place, : len(values)] = torch.tensor(values)
    return ids, positions, branch


def branch_mask(branch: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores (B, 1, T, T): 0 to what a token sees, the least number else."""
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    sees = sees.tril()
    return torch.zeros(sees.shape, dtype=dtype, device=branch.device).masked_fill(~sees, torch.finfo(dtype).min)[
        :, None
    ]
