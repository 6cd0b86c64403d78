"""Rewards of all answers to a prompt from one row: the prompt once, then its answers side by side.

K answers cost a prompt and K answers in place of K prompts and K answers (tasks/lib/models/shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.shared_prefix import branch_mask, branched, common, padded
from tasks.lib.reward.groups import Group
from tasks.lib.reward.reward_model import head_outputs, outputs
from tasks.lib.stage import Problem


def shared_outputs(model: Any, groups: Sequence[Group]) -> Tensor:
    """All outputs (B, N) for all B answers of the groups in their order, as `outputs` gives them."""
    rows = [branched(group.sequences, common(group.sequences)) for group in groups]
    ids, positions, branch = (tensor.to(model.device) for tensor in padded(rows))  # (groups, T) each
    states = model.base_model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=branch_mask(branch, model.dtype),
        use_cache=False,
    ).last_hidden_state
    last_tokens = []  # of every answer: the number of its row, and the place of its last token there
    for number, (_, _, _, ends) in enumerate(rows):
        last_tokens += [(number, end) for end in ends]
    row, last = torch.tensor(last_tokens, device=ids.device).unbind(1)  # (B,) each
    return head_outputs(model, states[row, last])


def row_length(group: Group) -> int:
    """Tokens of a group's row: what its answers share, and what is their own."""
    shared = common(group.sequences)
    return shared + sum(len(sequence) - shared for sequence in group.sequences)


@torch.no_grad()
def refuse_unless_equal(model: Any, group: Group) -> None:
    """Problem when a model reads a shared prompt otherwise than one sequence per answer (sliding windows)."""
    difference = (shared_outputs(model, [group]) - outputs(model, group.sequences)).abs().max().item()
    if not difference < 1e-3:  # NaN is refused, too
        raise Problem(
            f"reward.training.share_prompt: {model.config.model_type} does not read a shared prompt as it "
            f"reads whole sequences (rewards differ by {difference:.2g}); set it to false"
        )
