"""Rewards of all answers to a prompt from one row: the prompt once, then its answers side by side.

K answers cost a prompt and K answers in place of K prompts and K answers (tasks/lib/models/shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.shared_prefix import branch_mask, branched, common, padded
from tasks.lib.reward.reward_model import Group, head, outputs
from tasks.lib.stage import Problem


def shared_outputs(model: Any, groups: Sequence[Group]) -> Tensor:
    """All outputs (B, N) for all answers of the groups in their order, as `outputs` gives them."""
    rows = [branched(group.sequences, common(group.sequences)) for group in groups]
    ids, positions, branch = (x.to(model.device) for x in padded(rows))
    states = model.base_model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=branch_mask(branch, model.dtype),
        use_cache=False,
    ).last_hidden_state
    lasts = [(place, last) for place, (_, _, _, ends) in enumerate(rows) for last in ends]
    row, last = torch.tensor(lasts, device=ids.device).unbind(1)
    return head(model)(states[row, last]).float()


@torch.no_grad()
def refuse_unless_equal(model: Any, group: Group) -> None:
    """Problem when a model reads a shared prompt otherwise than one sequence per answer (sliding windows)."""
    apart = (shared_outputs(model, [group]) - outputs(model, group.sequences)).abs().max().item()
    if not apart < 1e-3:
        raise Problem(
            f"reward.training.share_prompt: {model.config.model_type} does not read a shared prompt as it "
            f"reads whole sequences (rewards differ by {apart:.2g}); set it to false"
        )
