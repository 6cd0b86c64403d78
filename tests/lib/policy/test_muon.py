"""Claims about Muon, against torch's own."""

from __future__ import annotations

import copy

import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.policy.muon import Muon, orthogonalised


def test_singular_values_become_about_one() -> None:
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 16, 40)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_it_steps_as_torch_muon_and_adam_do() -> None:
    """torch's Muon computes in bfloat16, which the second gradient shows to Adam too: equal to a tenth of the way."""
    torch.manual_seed(0)
    model = tiny_llama(tiny_tokenizer())
    twin = copy.deepcopy(model)
    ours = Muon(model, lr=1e-2, weight_decay=0.1)
    inside = [p for p in twin.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in twin.parameters() if not any(p is q for q in inside)]
    theirs = [
        torch.optim.Muon(inside, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-2, weight_decay=0.0),
    ]
    start = copy.deepcopy(twin)
    ids = torch.randint(0, 20, (4, 8))
    for _ in range(2):
        for each, optimizers in ((model, [ours]), (twin, theirs)):
            each(input_ids=ids, labels=ids).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for mine, other, before in zip(model.parameters(), twin.parameters(), start.parameters(), strict=True):
        moved = (other - before).norm()
        assert (mine - other).norm() <= 0.1 * moved
