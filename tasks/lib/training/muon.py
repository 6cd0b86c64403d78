"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before they are applied.

The same rule as torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"` (tested against it), but in float32 and
with matrices of one shape side by side: torch's works in bfloat16, which took four times as long on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic with a steep slope at 0, as published with Muon


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (N, R, C) with their singular values pushed to about 1, by Newton-Schulz iteration.

    Each step multiplies x by a polynomial in its Gram matrix x x^T. The polynomials commute, so of a long x the
    Gram matrix is stepped instead and x multiplied once at the end: fewer operations, the more so the longer x is.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.shape[1] == x.shape[2]:
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram = x @ x.mT
    identity = torch.eye(gram.shape[1], device=x.device)
    product = identity
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for the matrices inside the layers; Adam for embeddings, head, norms and biases, at the same rate.

    The RMS of a matrix's update is 0.2 per unit of rate, so rates are those of AdamW. One optimiser, so that
    a Trainer's schedule and checkpoints hold for both rules. The published momentum is 0.95: over the few hundred
    steps of a small model its average of 20 gradients is old, and one of 5 learned as much from half the rows.
    """

    def __init__(self, model: Any, lr: float, *, momentum: float = 0.8, weight_decay: float = 0.01) -> None:
        embeddings = model.get_input_embeddings().weight
        in_layers = {id(p) for p in model.base_model.parameters() if p.ndim == 2 and p is not embeddings}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in in_layers:
                matrices.append(parameter)
            else:
                others.append(parameter)
        groups: list[dict[str, Any]] = []
        if matrices:
            groups.append({"params": matrices, "rule": "muon"})
        if others:
            groups.append({"params": others, "rule": "adam"})
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["rule"] == "muon":
                self._muon(group)
            else:
                self._adam(group)

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for shape, parameters in by_shape.items():
            updates = orthogonalised(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
            rate = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)

    def _adam(self, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            state["mean"].lerp_(parameter.grad, 1 - first)
            state["square"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            mean = state["mean"] / (1 - first ** state["step"].item())
            square = state["square"] / (1 - second ** state["step"].item())
            parameter.sub_(group["lr"] * mean / (square.sqrt() + group["eps"]))
