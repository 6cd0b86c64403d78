"""An adapter folder is loaded as the model that was trained, bit for bit, or refused on other weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_model

from tasks.lib.finetuning.adapters import fields_of, prepare_model, save_trained
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.stage import Problem

BASE, SFT, DPO = Path("models/base"), Path("models/sft"), Path("models/dpo")


def trained(base: Path, into: Path, method: str = "lora", **fields: Any) -> dict[str, torch.Tensor]:
    """Writes what a method made of a model by a large step, and returns the weights that peft merges itself."""
    model, tokenizer = load_policy(base), write_model(Path("models/other"))
    torch.manual_seed(1)
    model = prepare_model(method, fields_of("sft.adapter", method, fields), model, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_trained(method, model, tokenizer, base, into)
    merged: dict[str, torch.Tensor] = model.merge_and_unload().state_dict()
    return merged


@pytest.fixture
def base(workspace: Path) -> Path:
    write_model(BASE, seed=3)
    return BASE


def equal(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_policy(folder).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 2}),
    ("lora", {"r": 2, "use_dora": True}),
    ("lora", {"r": 2, "use_rslora": True}),
    ("lora", {"r": 2, "bias": "all"}),
    ("lora", {"r": 2, "rank_pattern": {"q_proj": 3}}),
    ("lora", {"r": 2, "modules_to_save": ["lm_head"]}),
    ("adalora", {"init_r": 3, "target_r": 2}),
    ("ia3", {}),
]


@pytest.mark.parametrize(("method", "fields"), VARIANTS)
def test_a_loaded_adapter_has_the_bits_of_the_merged_model(base: Path, method: str, fields: dict[str, Any]) -> None:
    expected = trained(base, SFT, method, **fields)
    state = torch.random.get_rng_state()
    equal(SFT, expected)
    assert torch.equal(torch.random.get_rng_state(), state)  # a load draws no random number
    assert not list(SFT.glob("model*.safetensors"))
    assert all(parameter.requires_grad for parameter in load_policy(SFT).parameters())  # an ordinary model


def test_an_adapter_stands_on_an_adapter(base: Path) -> None:
    trained(base, SFT, r=2)
    expected = trained(SFT, DPO, r=3)
    equal(DPO, expected)
    shutil.copytree(DPO, "models/policy")
    equal(Path("models/policy"), expected)
    assert weights_hash("models/policy") == weights_hash(DPO) != weights_hash(SFT)


def test_other_weights_below_are_refused_by_name_and_change_the_hash(base: Path) -> None:
    trained(base, SFT, r=2)
    trained(SFT, DPO, r=2)
    before = weights_hash(base), weights_hash(SFT), weights_hash(DPO)
    write_model(base, seed=4)
    with pytest.raises(Problem, match=rf"models/sft: .* models/base: expected weights {before[0][:12]}, found"):
        load_policy(DPO)
    trained(base, SFT, r=2)  # as another run of sft
    assert weights_hash(SFT) != before[1]
    with pytest.raises(Problem, match=rf"models/dpo: .* models/sft: expected weights {before[1][:12]}"):
        load_policy(DPO)
    shutil.rmtree(base)
    with pytest.raises(Problem, match="models/base does not exist; run the stage that makes it"):
        load_policy(SFT)


def test_an_adapter_that_begins_with_changed_weights_is_saved_in_them(base: Path) -> None:
    """PiSSA takes the adapter's first values out of the base: base and adapter are not the model."""
    expected = trained(base, SFT, r=2, init_lora_weights="pissa")
    assert (SFT / "model.safetensors").is_file() and not (SFT / "adapter_config.json").exists()
    equal(SFT, expected)
    with pytest.raises(Problem, match="pissa changes the base's weights, but those stay in four bits"):
        fields_of("sft.adapter", "qlora", {"init_lora_weights": "pissa"})


def spoilt(how: str) -> str:
    """Damage models/sft in one way; the pattern that the Problem must match."""
    weights, config = SFT / "adapter_model.safetensors", SFT / "adapter_config.json"
    if how == "megatron":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"megatron_config": {"a": 1}}))
        return "megatron_config asks to run the model's own code"
    if how == "origin":
        (SFT / "base.json").write_text("[]")
        return r"base.json: expected \{"
    tensors = load_file(weights)
    name = min(tensors)
    if how == "lost":
        weights.unlink()
        return "adapter_model.safetensors is missing"
    if how == "tensor":
        del tensors[name]
    elif how == "shape":
        tensors[name] = tensors[name][:, :3].clone()
    else:
        tensors[name][0] = float("nan")
    save_file(tensors, weights)
    return {"tensor": "1 tensors missing or unknown, first", "shape": "cannot be merged", "NaN": "holds NaN"}[how]


@pytest.mark.parametrize("how", ["megatron", "origin", "lost", "tensor", "shape", "NaN"])
def test_a_damaged_adapter_is_one_clear_line(base: Path, how: str) -> None:
    trained(base, SFT, r=2)
    message = spoilt(how)
    with pytest.raises(Problem, match=message) as caught:
        load_policy(SFT)
    assert "\n" not in str(caught.value)


def test_what_was_loaded_can_be_saved_as_weights(base: Path) -> None:
    expected = trained(base, SFT, r=2)
    save_model(load_policy(SFT), write_model(Path("models/other")), DPO)
    equal(DPO, expected)
