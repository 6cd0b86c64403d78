"""A small feed-forward network in parallel to each block's own (the parallel adapter of arXiv 2110.04366).

Two networks side by side are one wider network, so that what was trained becomes part of an ordinary model.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tasks.lib.stage import Problem


class ParallelMlp(nn.Module):
    """A feed-forward network and a small one of its kind, added: mlp(x) + bottleneck(x)."""

    def __init__(self, mlp: Any, bottleneck: Any) -> None:
        super().__init__()
        self.mlp, self.bottleneck = mlp, bottleneck

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.bottleneck(x)


def with_bottleneck(model: Any, size: int) -> Any:
    """Every block with `size` more hidden units, whose way back into the residual stream is 0 at first.

    Problem when the model's feed-forward networks have no gate.
    """
    config = copy.deepcopy(model.config)
    config.intermediate_size = size
    for layer in getattr(model.get_decoder(), "layers", [None]):
        mlp: Any = getattr(layer, "mlp", None)
        if not all(hasattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")):
            raise Problem(f"{config.model_type}: its feed-forward network is not gated; choose the method lora")
        bottleneck = type(mlp)(config).to(device=model.device, dtype=model.dtype)
        for name in ("gate_proj", "up_proj"):
            nn.init.normal_(getattr(bottleneck, name).weight, std=config.initializer_range)
        nn.init.zeros_(bottleneck.down_proj.weight)
        layer.mlp = ParallelMlp(mlp, bottleneck)
    return model


def without_bottleneck(model: Any) -> Any:
    """The same function as an ordinary model with wider networks: gate and up get rows, down gets columns."""
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".mlp.mlp." in name:
            small = state[name.replace(".mlp.mlp.", ".mlp.bottleneck.")]
            tensors[name.replace(".mlp.mlp.", ".mlp.")] = _joined(name, tensor, small)
        elif ".mlp.bottleneck." not in name:
            tensors[name] = tensor
    config = copy.deepcopy(model.config)
    config.intermediate_size += model.get_decoder().layers[0].mlp.bottleneck.gate_proj.out_features
    wide = type(model)(config).to(device=model.device, dtype=model.dtype)
    wide.load_state_dict(tensors)
    wide.generation_config = model.generation_config
    return wide.eval()


def _joined(name: str, tensor: Tensor, small: Tensor) -> Tensor:
    """The tensor of the wide network, by its name."""
    if name.endswith("down_proj.bias"):
        return tensor + small
    if name.endswith("down_proj.weight"):
        return torch.cat([tensor, small], dim=1)
    return torch.cat([tensor, small], dim=0)
