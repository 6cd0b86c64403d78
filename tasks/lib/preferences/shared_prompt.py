"""Rewards of all answers to a prompt from one row: the prompt once, then its answers side by side.

An answer's tokens see the prompt and their own answer, not the other answers, and count their positions from
the end of the prompt: to each answer it is the sequence prompt + answer. K answers cost a prompt and K answers
in place of K prompts and K answers. For models that take a mask of their own (B, 1, T, T) and positions:
those with full attention, of transformers' Llama, Qwen, Mistral kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.preferences.reward_model import Group, head, outputs
from tasks.lib.stage import Problem


def shared_outputs(model: Any, groups: Sequence[Group]) -> Tensor:
    """All outputs (B, N) for all answers of the groups in their order, as `outputs` gives them."""
    rows = [_row(group.sequences) for group in groups]
    width = max(len(ids) for ids, _, _, _ in rows)
    ids, positions, branch = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    branch -= 1  # padding: a branch of its own, which sees the prompt, so that no row of the mask is empty
    for place, (tokens, at, belongs, _) in enumerate(rows):
        for target, values in ((ids, tokens), (positions, at), (branch, belongs)):
            target[place, : len(values)] = torch.tensor(values)
    ids, positions, branch = (x.to(model.device) for x in (ids, positions, branch))
    states = model.base_model(
        input_ids=ids, position_ids=positions, attention_mask=_mask(branch, model.dtype), use_cache=False
    ).last_hidden_state
    lasts = [(place, last) for place, (_, _, _, ends) in enumerate(rows) for last in ends]
    row, last = torch.tensor(lasts, device=ids.device).unbind(1)
    return head(model)(states[row, last]).float()


def _row(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(ids, positions, branch of every token, places of the last tokens); branch 0 is what all share."""
    shared = 0
    while all(shared < len(s) - 1 and s[shared] == sequences[0][shared] for s in sequences):
        shared += 1
    ids, positions, branch, ends = [*sequences[0][:shared]], [*range(shared)], [0] * shared, []
    for number, sequence in enumerate(sequences, 1):
        own = sequence[shared:]
        ids += own
        positions += range(shared, len(sequence))
        branch += [number] * len(own)
        ends.append(len(ids) - 1)
    return ids, positions, branch, ends


def _mask(branch: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the attention scores (B, 1, T, T): 0 to what a token sees, the least number else."""
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    sees = sees.tril()
    return torch.zeros(sees.shape, dtype=dtype, device=branch.device).masked_fill(
        ~sees, torch.finfo(dtype).min
    )[:, None]


@torch.no_grad()
def refuse_unless_equal(model: Any, group: Group) -> None:
    """Problem when a model reads a shared prompt otherwise than one sequence per answer (sliding windows)."""
    apart = (shared_outputs(model, [group]) - outputs(model, group.sequences)).abs().max().item()
    if not apart < 1e-3:
        raise Problem(
            f"reward.training.share_prompt: {model.config.model_type} does not read a shared prompt as it "
            f"reads whole sequences (rewards differ by {apart:.2g}); set it to false"
        )
