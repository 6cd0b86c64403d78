"""Weights are kept in one precision from base to release; what is trained has float32 masters, or an adapter's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.finetuning.adapters import fields_of, prepare_model, save_trained
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import autocast, chosen_dtype, kept_dtype, round_weights

BASE, SFT = Path("models/base"), Path("models/sft")


@pytest.mark.parametrize(
    ("precision", "parameters", "expected"),
    [
        ("auto", 500_000_000, torch.float32),
        ("auto", 500_000_001, torch.bfloat16),
        ("float32", 8_000_000_000, torch.float32),
        ("bfloat16", 1_000, torch.bfloat16),
    ],
)
def test_auto_keeps_large_models_in_16_bits(precision: str, parameters: int, expected: torch.dtype) -> None:
    assert chosen_dtype(precision, parameters) == expected


@pytest.fixture
def base(workspace: Path) -> Any:
    tokenizer = tiny_tokenizer()
    save_model(tiny_llama(tokenizer), tokenizer, BASE, dtype=torch.bfloat16)
    return tokenizer


def test_a_model_is_loaded_as_it_is_kept(base: Any) -> None:
    assert kept_dtype(BASE) == load_policy(BASE).dtype == torch.bfloat16
    assert load_policy(BASE, dtype=torch.float32).dtype == torch.float32
    assert kept_dtype("models/nothing") == torch.float32


def test_positions_are_not_rounded_with_the_weights(base: Any) -> None:
    model = load_policy(BASE, dtype=torch.float32)
    before = model.model.rotary_emb.inv_freq.clone()
    round_weights(model, torch.bfloat16)
    assert model.dtype == torch.bfloat16 and torch.equal(model.model.rotary_emb.inv_freq, before)


def test_an_adapter_is_trained_in_float32_and_merged_into_16_bits(base: Any) -> None:
    model = load_policy(BASE)
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    model = prepare_model("lora", fields_of("sft.adapter", "lora", {"r": 2}), model, base)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    product = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    update = layer.scaling["default"] * product
    exact = weight.double() + update
    save_trained("lora", model, base, BASE, SFT)
    loaded = load_policy(SFT)
    assert kept_dtype(SFT) == loaded.dtype == torch.bfloat16
    error = (loaded.model.layers[0].mlp.up_proj.weight.double() - exact).abs()
    assert bool((error <= 2**-8 * (exact.abs() + update.abs())).all())  # half of the last of 8 bits, twice


def test_masters_take_small_steps_that_16_bits_would_lose(base: Any) -> None:
    """The weights are cast again at every pass: no step is taken on the values of an earlier one."""
    model = load_policy(BASE, dtype=torch.float32)
    ids = torch.tensor([[10, 11, 12, 13]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    with autocast(model, torch.bfloat16):
        assert model.lm_head(torch.ones(1, 16)).dtype == torch.bfloat16
        for _ in range(8):
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5 and math.isfinite(losses[-1])
    with autocast(model, torch.float32):
        assert model.lm_head(torch.ones(1, 16)).dtype == torch.float32
