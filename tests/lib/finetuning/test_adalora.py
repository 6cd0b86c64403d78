"""AdaLoRA's ranks shrink on schedule to the budget, and its checkpoint holds everything that goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.finetuning.adalora import load_ranks, orthogonality, save_ranks, schedule
from tasks.lib.finetuning.adapters import fields_of, prepare_model
from tasks.lib.stage import Problem

IDS = torch.tensor([[10, 11, 12, 13, 14, 15]])
MATRICES = 2 * 7  # two layers


def adapted() -> Any:
    torch.manual_seed(1)
    fields = fields_of("sft.adapter", "adalora", {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3})
    model = prepare_model("adalora", fields, tiny_llama(tiny_tokenizer()), None)
    schedule(model.peft_config["default"], 10)
    return model


def step(model: Any, number: int) -> None:
    model.zero_grad()
    model(input_ids=IDS, labels=IDS).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= 0.1 * parameter.grad
    model.base_model.update_and_allocate(number)


def ranks(model: Any) -> int:
    return sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)


def test_ranks_shrink_by_the_cube_to_the_budget() -> None:
    """56 to 28 over steps 2 to 7: after step 4 28 + 28 (3/5)^3 = 34, after step 7 and to the end 28."""
    model, found = adapted(), []
    for number in range(1, 11):
        step(model, number)
        found.append(ranks(model))
    assert found[:2] == [4 * MATRICES] * 2
    assert found[3] == 34
    assert found[6:] == [2 * MATRICES] * 4


@pytest.mark.parametrize("stop", [4, 7, 8])
def test_a_restored_model_takes_the_same_steps(tmp_path: Path, stop: int) -> None:
    model = adapted()
    for number in range(1, stop + 1):
        step(model, number)
    save_ranks(model, tmp_path)
    model.state_dict()
    other = adapted()
    load_ranks(other, tmp_path)
    for number in range(stop + 1, 11):
        step(model, number)
        step(other, number)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_regulariser_is_that_of_peft() -> None:
    model = adapted()
    plain = torch.nn.functional.cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
    whole = model(input_ids=IDS, labels=IDS).loss
    assert (whole - plain).item() == pytest.approx(0.5 * orthogonality(model).item(), rel=1e-5)


def test_the_schedule_fits_the_steps_of_the_run() -> None:
    config = SimpleNamespace(tinit=-1, tfinal=-1, total_step=0)
    schedule(config, 200)
    assert (config.tinit, config.tfinal, config.total_step) == (20, 100, 200)
    with pytest.raises(Problem, match="tinit 20 and tfinal 100 leave none of 100 steps"):
        schedule(config, 100)
