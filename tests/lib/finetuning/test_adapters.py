"""What each way to fine-tune trains, that it starts where the model was, and that merging changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_cases import COUNTS, FIELDS
from tiny_models import tiny_llama, tiny_tokenizer, write_model
from transformers import GPT2Config, GPT2LMHeadModel

from tasks.lib.finetuning.adapters import (
    count_trainable,
    fields_of,
    load_quantised,
    prepare_model,
    save_trained,
)
from tasks.lib.models.loading import load_policy
from tasks.lib.settings.methods import METHODS
from tasks.lib.stage import Problem

IDS = torch.tensor([[10, 11, 12, 13, 14, 15]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, method: str, **fields: Any) -> Any:
    model = load_quantised(base) if method == "qlora" else load_policy(base)
    torch.manual_seed(1)
    given = fields_of("sft.adapter", method, FIELDS.get(method, {}) | fields)
    return prepare_model(method, given, model, tiny_tokenizer()).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def move(model: Any) -> None:
    """A large step, so that merging has something to lose."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if hasattr(parameter, "trained"):
            parameter[300:] += 0.3 * torch.randn_like(parameter[300:])
        elif parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("method", METHODS)
def test_trained_parameters_are_those_of_the_formula(base: Path, method: str) -> None:
    assert count_trainable(adapted(base, method)) == COUNTS[method]


@pytest.mark.parametrize("method", ["lora", "adalora", "ia3", "bitfit", "bottleneck", "head"])
def test_the_first_output_is_that_of_the_base(base: Path, method: str) -> None:
    torch.testing.assert_close(logits(adapted(base, method)), logits(load_policy(base)), rtol=0, atol=1e-6)


def test_the_first_output_of_qlora_is_that_of_the_quantised_base(base: Path) -> None:
    torch.testing.assert_close(logits(adapted(base, "qlora")), logits(load_quantised(base)), rtol=0, atol=1e-6)


VARIANTS = [("lora", {}), ("lora", {"use_rslora": True}), ("lora", {"use_dora": True})]
VARIANTS += [(method, {}) for method in ("adalora", "ia3", "bitfit", "bottleneck", "prompt", "head")]


@pytest.mark.parametrize(("method", "fields"), VARIANTS)
def test_a_merged_model_is_the_trained_one(base: Path, method: str, fields: dict[str, Any]) -> None:
    ids = torch.tensor([[300, 301, 302, *IDS[0].tolist()]]) if method == "prompt" else IDS
    model = adapted(base, method, **fields)
    first = logits(model, ids)
    move(model)
    before = logits(model, ids)
    assert (before - first).abs().max() > 1e-2
    tokenizer = tiny_tokenizer()
    save_trained(method, model, tokenizer, base, base.parent / "sft")
    after = load_policy(base.parent / "sft")
    torch.testing.assert_close(logits(after, ids), before, rtol=0, atol=1e-5)
    assert type(after).__name__ == "LlamaForCausalLM"


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(base: Path) -> None:
    """alpha / sqrt(r) instead of alpha / r: with r = 4, twice the update."""
    plain, stable = (adapted(base, "lora", r=4, use_rslora=yes) for yes in (False, True))
    scaling = [m.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] for m in (plain, stable)]
    assert scaling == [8 / 4, 8 / 2]


def test_qlora_is_merged_into_full_precision_not_into_four_bits(base: Path) -> None:
    model = adapted(base, "qlora")
    move(model)
    reference = adapted(base, "lora")
    parameters = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameters[name].copy_(parameter)
    save_trained("qlora", model, tiny_tokenizer(), base, base.parent / "sft")
    torch.testing.assert_close(logits(load_policy(base.parent / "sft")), logits(reference), rtol=0, atol=1e-5)


def test_only_the_new_weights_get_a_gradient(base: Path) -> None:
    model = adapted(base, "bottleneck")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert {name.split(".mlp.")[1] for name, p in model.named_parameters() if p.grad is not None} == {
        f"bottleneck.{kind}_proj.weight" for kind in ("gate", "up", "down")
    }


def test_a_soft_prompt_stands_first_in_the_template_and_starts_as_known_tokens() -> None:
    tokenizer = tiny_tokenizer()
    model = prepare_model("prompt", {"tokens": 2}, tiny_llama(tokenizer), tokenizer)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert not gradient[:300].any() and gradient[300:].any()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "red"}], return_dict=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[:3]) == ["<|soft_0|>", "<|soft_1|>", "<|user|>"]
    rows = model.get_input_embeddings().weight
    assert rows.shape[0] == 302
    assert all(bool((rows[:300] == row).all(1).any()) for row in rows[300:])
    with pytest.raises(Problem, match="has a soft prompt"):
        prepare_model("prompt", {"tokens": 2}, tiny_llama(tokenizer), tokenizer)


def test_a_template_that_begins_a_text_still_begins_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{- bos_token -}}" + tokenizer.chat_template
    prepare_model("prompt", {"tokens": 1}, tiny_llama(tokenizer), tokenizer)
    assert tokenizer.chat_template.startswith("{{- bos_token -}}<|soft_0|>")


def test_biases_that_are_there_are_trained_and_none_added() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    prepare_model("bitfit", None, model, None)
    assert count_trainable(model) == 24 + 8 + 32 + 8 + 3 * 8  # attention in, out, feed-forward in, out; three norms


def test_a_model_without_a_gated_network_is_told_to_use_lora() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(Problem, match="choose the method lora"):
        prepare_model("bottleneck", {"size": 4}, model, None)
