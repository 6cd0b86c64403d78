"""LoRA whose product is merged into the weights for one pass at a time: y = x (W + s B A)' + b, W and b frozen.

peft adds s B (A x) to the output instead, and writes three more tensors as wide as the output. Here W + s B A is formed
in the forward pass and again in the backward pass, so that no second copy of the weights is kept, and the gradients of
A and B come from narrow products: never from the gradient of W, which is as large as W (arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from tasks.lib.training.distributed import is_sharded


def merge_in_passes(config: Any) -> None:
    """Let the layers that peft makes by this LoraConfig be a `MergedLinear`. Not for quantised weights, and not for
    those that processes share out: no process has the whole of W then."""
    if not is_sharded():
        config._register_custom_module({nn.Linear: MergedLinear})


class MergedLinear(Linear):
    """peft's layer around an `nn.Linear` with one plain adapter (no dropout, no variant), in float32.

    peft's own forward runs where merging costs more than it saves, which is where rows are few, as in generation; where
    the numbers are of 16 bits, in which W swallows a small product; for adapters that are more than A and B (DoRA,
    dropout); and where W or b is trained, too.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self.get_base_layer()
        rows = x[..., 0].numel()
        few_rows = rows * sum(layer.weight.shape) < layer.weight.numel()
        is_float32 = x.dtype == layer.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        one_adapter = not self.disable_adapters and not self.merged and len(self.active_adapters) == 1
        has_dropout = any(isinstance(dropout, nn.Dropout) for dropout in self.lora_dropout.values())
        is_product = not self.lora_variant and not any(self.lora_bias.values()) and not has_dropout
        is_frozen = not any(parameter.requires_grad for parameter in layer.parameters())  # with bias: all it is not
        if few_rows or not is_float32 or not one_adapter or not is_product or not is_frozen:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        return _Merged.apply(x, layer.weight, layer.bias, down, up, self.scaling[name])


class _Merged(torch.autograd.Function):
    """x (..., i), weight (o, i), bias (o) or None, down A (r, i), up B (o, r), scale s -> (..., o)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, down, up)
        ctx.scale = scale
        return linear(x, torch.addmm(weight, up, down, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)  # (rows, o)
        rows = x.flatten(0, -2)  # (rows, i)
        of_x = None
        if ctx.needs_input_grad[0]:  # not in the first layer
            of_x = (gradient @ torch.addmm(weight, up, down, alpha=ctx.scale)).view_as(x)
        of_down = ctx.scale * (gradient @ up).T @ rows  # (r, i)
        of_up = ctx.scale * ((rows @ down.T).T @ gradient).T  # (o, r)
        return of_x, None, None, of_down, of_up, None
