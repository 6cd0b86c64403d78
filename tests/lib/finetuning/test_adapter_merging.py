"""Adapters on one base: switching gives each one's own model, merging the weighted sum of their updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_model

from flows.cli import main
from tasks.lib.finetuning.adalora import schedule
from tasks.lib.finetuning.adapter_merging import load_adapters, merge_adapters
from tasks.lib.finetuning.adapters import fields_of, prepare_model, save_trained
from tasks.lib.models.loading import load_policy
from tasks.lib.stage import Problem

IDS = torch.tensor([[10, 11, 12, 13, 14, 15]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def adapter(base: Path, path: Path, seed: int, method: str = "lora", **fields: Any) -> torch.Tensor:
    """Writes an adapter of random weights; returns the logits of the model that it makes of the base."""
    tokenizer = write_model(base)
    torch.manual_seed(seed)
    model = prepare_model(method, fields_of("sft.adapter", method, fields), load_policy(base), tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    save_trained(method, model, tokenizer, base, path)
    return logits(load_policy(path))


@pytest.fixture
def two(tmp_path: Path) -> dict[str, torch.Tensor]:
    return {
        "plain": adapter(tmp_path / "base", tmp_path / "plain", 1, r=2),
        "stable": adapter(tmp_path / "base", tmp_path / "stable", 2, r=3, lora_alpha=4, use_rslora=True),
    }


def test_switching_gives_each_its_own_model(tmp_path: Path, two: dict[str, torch.Tensor]) -> None:
    model = load_adapters(tmp_path / "base", {name: tmp_path / name for name in two})
    for name in ("plain", "stable", "plain"):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model), two[name], rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(load_policy(tmp_path / "base")), rtol=0, atol=1e-6)


def test_a_merged_model_has_the_weighted_sum_of_the_updates(tmp_path: Path, two: Any) -> None:
    main_of = ["merge", str(tmp_path / "base"), f"{tmp_path}/plain=0.25", f"{tmp_path}/stable=-2"]
    with pytest.raises(SystemExit, match="0"):
        main([*main_of, "--into", str(tmp_path / "both")])
    base = load_policy(tmp_path / "base").state_dict()
    one = {n: merged_alone(tmp_path, n) for n in ("plain", "stable")}
    for name, tensor in load_policy(tmp_path / "both").state_dict().items():
        expected = base[name] + 0.25 * (one["plain"][name] - base[name]) - 2 * (one["stable"][name] - base[name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-5)


def merged_alone(tmp_path: Path, name: str) -> dict[str, torch.Tensor]:
    model = load_adapters(tmp_path / "base", {name: tmp_path / name})
    return model.merge_and_unload().state_dict()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path, two: Any) -> None:
    write_model(tmp_path / "other", seed=5)
    with pytest.raises(Problem, match="plain: was trained on another base"):
        load_adapters(tmp_path / "other", {"plain": tmp_path / "plain"})
    with pytest.raises(Problem, match="no adapter_config"):
        load_adapters(tmp_path / "base", {"base": tmp_path / "base"})


def test_ranks_that_were_switched_off_stay_so(tmp_path: Path) -> None:
    """AdaLoRA after its ranks shrank; with another kind beside it, it merges but cannot be switched to."""
    tokenizer = write_model(tmp_path / "base")
    torch.manual_seed(3)
    fields = fields_of("sft.adapter", "adalora", {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2})
    model = prepare_model("adalora", fields, load_policy(tmp_path / "base"), tokenizer)
    schedule(model.peft_config["default"], 6)
    for step in range(1, 7):
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.5 * parameter.grad
        model.base_model.update_and_allocate(step)
    save_trained("adalora", model, tokenizer, tmp_path / "base", tmp_path / "ranks")
    merge_adapters(tmp_path / "base", {tmp_path / "ranks": 1.0}, tmp_path / "merged")
    torch.testing.assert_close(logits(load_policy(tmp_path / "merged")), logits(model.eval()), rtol=0, atol=1e-5)
    adapter(tmp_path / "base", tmp_path / "plain", 1, r=2)
    merge_adapters(tmp_path / "base", {tmp_path / "ranks": 1.0, tmp_path / "plain": 0.5}, tmp_path / "both")
    with pytest.raises(Problem, match="cannot be combined with the others"):
        load_adapters(tmp_path / "base", {name: tmp_path / name for name in ("plain", "ranks")})


@pytest.mark.parametrize(("method", "fields"), [("ia3", {}), ("lora", {"r": 2, "use_dora": True})])
def test_what_is_no_sum_of_updates_cannot_be_merged(tmp_path: Path, method: str, fields: Any) -> None:
    adapter(tmp_path / "base", tmp_path / "one", 1, method, **fields)
    with pytest.raises(Problem, match="one: only low-rank updates can be added up"):
        merge_adapters(tmp_path / "base", {tmp_path / "one": 1.0}, tmp_path / "both")
