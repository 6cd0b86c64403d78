"""The plan's formulas: ZeRO's table, trained parameters as they are counted, sizes of known models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import COUNTS, FIELDS
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from flows import memory
from tasks.lib.settings.methods import METHODS

PRESETS = Path(__file__).resolve().parents[2] / "presets"


@pytest.mark.parametrize(("stage", "weights", "state"), [(0, 40, 120), (1, 40, 40 + 80 / 4), (2, 40, 30), (3, 10, 30)])
def test_what_is_spread_over_four_devices(stage: int, weights: float, state: float) -> None:
    """Ten parameters in float32: 40 bytes of weights, 40 of gradients, 80 of the optimiser."""
    shape = memory.Shape(10, 10, 2, 1, 1, 1, 0, 1)
    gathered = 4 * 2 * 5 if stage == 3 else 0  # two of two blocks
    assert memory.spread_bytes(shape, 40, 120, 4, stage) == (weights + gathered, state)
    assert memory.spread_bytes(shape, 40, 120, 1, stage) == (40, 120)


@pytest.mark.parametrize("method", METHODS)
def test_planned_parameters_are_those_that_are_trained(method: str) -> None:
    shape = memory.shape_of_config(tiny_llama(tiny_tokenizer()).config)
    assert memory.trained_parameters(shape, method, FIELDS.get(method, {})) == COUNTS[method]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.134515),
        ("llama-8b-qlora", 8.030261),
        ("llama-8b-lora", 8.030261),
        ("qwen-8b", 8.190735),
        ("llama-70b-fsdp2", 70.553706),
    ],
)
def test_the_shapes_of_presets_are_those_of_the_models(name: str, billions: float) -> None:
    shape = memory.shape_of_config(memory.read_config(PRESETS / name / "config.json"))
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=1e-5)


def test_the_linear_layers_of_gpt2_count_and_its_output_layer_does_not() -> None:
    shape = memory.shape_of_config(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=50, n_positions=16))
    # of a layer: queries, keys and values in one matrix, the attention's output, and 4 times wider up and down
    assert shape.linear == 2 * (8 * 24 + 8 * 8 + 2 * 8 * 32)
    assert shape.in_and_out == 2 * (8 + 24 + 8 + 8 + 2 * (8 + 32))


def test_four_bits_shrink_the_matrices_and_nothing_else() -> None:
    shape = memory.shape_of_config(memory.read_config(PRESETS / "llama-8b-qlora" / "config.json"))
    weights, state = memory.trained_bytes(shape, "qlora", {"r": 16})
    adapters = 41_943_040  # r 16 on all linear layers of an 8B Llama, a figure that is often printed
    assert memory.trained_parameters(shape, "qlora", {"r": 16}) == adapters
    rest = shape.parameters - 6_979_321_856
    assert weights == pytest.approx(0.515875 * 6_979_321_856 + 4 * rest + 4 * adapters)
    assert state == 12 * adapters
    assert sum(memory.trained_bytes(shape, "full", {})) == 16 * shape.parameters


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    shape = memory.shape_of_config(tiny_llama(tiny_tokenizer()).config)
    one = 8 * 16 + 2 * 16 + 4 * 32
    float32 = memory.Arithmetic(4.0)
    assert memory.activation_bytes(shape, 10, float32, checkpointing=False) == 10 * 2 * one * 4
    assert memory.activation_bytes(shape, 10, float32, checkpointing=True) == 10 * (2 * 16 + one) * 4
    assert memory.backward_bytes(shape, 10, 4) == 10 * 3 * 32 * 4


def llama(dtype: torch.dtype) -> Any:
    """With the proportions of an 8B Llama: four times as many heads as keys, an MLP of 3.5 times the width."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=896, tie_word_embeddings=False,
    ))  # fmt: skip
    return model.to(dtype)


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)],
)
def test_planned_activations_are_what_autograd_keeps(dtype: torch.dtype, autocast: bool, adapters: bool) -> None:
    """8 rows of 64 tokens through the layers: to 15 %, counted tensor by tensor."""
    model = llama(dtype)
    shape = memory.shape_of_config(model.config)
    if adapters:
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    elif dtype == torch.bfloat16 and autocast:
        pytest.skip("no stage does this: what is trained whole is in float32")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # keeps the tensors too, so that no place is used twice

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    body = model.base_model.model.model if adapters else model.model
    with (
        torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        output = body(input_ids=torch.zeros(8, 64, dtype=torch.long), use_cache=False)
    assert output.last_hidden_state.requires_grad
    found = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    how = memory.Arithmetic(dtype.itemsize, autocast)
    planned = memory.activation_bytes(shape, 8 * 64, how, checkpointing=False, adapters=adapters)
    assert planned == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_planned_weights_gradients_and_moments_are_those_of_a_step(method: str) -> None:
    """LoRA over bf16 weights, or all weights in float32, after a step of AdamW: to 15 %."""
    model = llama(torch.float32 if method == "full" else torch.bfloat16)
    shape = replace(memory.shape_of_config(model.config), kept=2.0)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.float().sum().backward()
    optimizer.step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    state = sum(p.numel() * p.element_size() for p in trained)  # the gradients
    for of_parameter in optimizer.state.values():
        state += sum(t.numel() * t.element_size() for t in of_parameter.values() if t.ndim)
    assert memory.trained_bytes(shape, method, {"r": 8}) == pytest.approx((weights, state), rel=0.15)
