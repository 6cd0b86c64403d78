"""Merging an adapter's product for a pass changes neither the output nor a gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tasks.lib.finetuning.merged_lora import MergedLinear


def layer(bias: bool = True, **fields: bool) -> MergedLinear:
    """6 inputs, 4 outputs, rank 2, product scaled by 8 / 2; further `fields` of LoraConfig."""
    from peft import LoraConfig

    torch.manual_seed(0)
    base = nn.Linear(6, 4, bias=bias).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=8, lora_dropout=0.0, **fields)
    found = MergedLinear(base, "default", config=config, r=2, lora_alpha=8)
    nn.init.normal_(found.lora_B["default"].weight)
    return found


def results(adapted: MergedLinear, x: Tensor) -> Iterator[Tensor]:
    """The output, and the gradients of its squares for x, A and B."""
    x = x.clone().requires_grad_()
    parameters = [x, adapted.lora_A["default"].weight, adapted.lora_B["default"].weight]
    y = adapted(x)
    return iter([y, *torch.autograd.grad(y.pow(2).sum(), parameters)])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(3, 5), (1, 2)])  # 15 rows are merged; 2 are few: 2 * (6 + 4) < 6 * 4
def test_output_and_gradients_are_those_of_peft(bias: bool, rows: tuple[int, int]) -> None:
    adapted, x = layer(bias), torch.randn(*rows, 6)
    assert ("Merged" in str(adapted(x).grad_fn)) == (rows == (3, 5))
    found = list(results(adapted, x.detach()))
    adapted.forward = super(MergedLinear, adapted).forward  # type: ignore[method-assign]
    for ours, theirs in zip(found, results(adapted, x.detach()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("field", ["use_dora", "lora_bias"])
def test_an_adapter_that_is_more_than_a_product_is_left_to_peft(field: str) -> None:
    adapted, x = layer(**{field: True}), torch.randn(9, 6)
    for parameter in adapted.parameters():
        nn.init.normal_(parameter)
    assert "Merged" not in str(adapted(x).grad_fn)
    assert torch.equal(adapted(x), super(MergedLinear, adapted).forward(x))


def test_dropout_and_a_trained_bias_are_left_to_peft() -> None:
    adapted, x = layer(), torch.randn(9, 6)
    assert "Merged" in str(adapted(x).grad_fn)
    adapted.base_layer.bias.requires_grad_(True)
    adapted(x).sum().backward()
    assert adapted.base_layer.bias.grad.tolist() == [9.0] * 4
    adapted = layer()
    adapted.lora_dropout["default"] = nn.Dropout(0.5)
    assert "Merged" not in str(adapted(x).grad_fn)


def test_without_its_adapter_the_layer_is_the_frozen_one() -> None:
    adapted, x = layer(), torch.randn(9, 6)
    adapted.enable_adapters(False)
    assert torch.equal(adapted(x), adapted.base_layer(x))


def test_numbers_of_16_bits_are_not_merged() -> None:
    """1 + 2^-9 is 1 in bfloat16: a merged product of that size would be lost."""
    adapted = layer(bias=False)
    with torch.no_grad():
        adapted.base_layer.weight.fill_(1)
        adapted.lora_A["default"].weight.fill_(2.0**-6)
        adapted.lora_B["default"].weight.fill_(2.0**-6)  # the product: 2 * 2^-12 * 4 = 2^-9
    alternating = torch.tensor([[1.0, -1, 1, -1, 1, 0]] * 9).bfloat16()
    narrow = adapted.bfloat16()(alternating * 2**8)
    assert torch.equal(narrow, torch.full((9, 4), 256.0).bfloat16() + 0.5)
