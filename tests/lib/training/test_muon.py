"""Claims about Muon, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 16, 40), (3, 40, 16), (3, 16, 16)])
def test_singular_values_become_about_one_and_the_directions_stay(shape: tuple[int, int, int]) -> None:
    """Against the singular value decomposition: u s v becomes u s' v."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ orthogonalised(matrices) @ v.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert (turned - torch.diag_embed(values)).abs().max() < 1e-3
    surely_large = values[:, :-1] if shape[1] == shape[2] else values  # a square one may have a value near 0
    assert surely_large.min() > 0.6 and values.max() < 1.3


def test_it_steps_as_torch_muon_and_adam_do() -> None:
    """torch's Muon computes in bfloat16, which the second gradient shows to Adam too: equal to a tenth of the way."""
    torch.manual_seed(0)
    model = tiny_llama(tiny_tokenizer())
    twin = copy.deepcopy(model)
    ours = Muon(model, lr=1e-2, momentum=0.95, weight_decay=0.1)
    inside = [p for p in twin.model.layers.parameters() if p.ndim == 2]
    known = {id(p) for p in inside}
    rest = [p for p in twin.parameters() if id(p) not in known]
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
