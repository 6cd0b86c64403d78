"""A checkpoint is whole or absent, and goes on only with equal parameters."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks.lib.training import checkpoints
from tasks.lib.training.checkpoints import (
    Checkpoint,
    changed_key,
    hf_checkpoint,
    mark_complete,
    optimizer_tensors,
    restore_optimizer,
)

PARAMS = {"params": {"lr": 1e-3, "sizes": (1, 2)}, "inputs": {"models/sft": "abc"}}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "ppo", PARAMS)
    assert checkpoint.load() is None
    shared = torch.arange(6.0).view(2, 3)
    checkpoint.save(3, {"a": shared, "transposed": shared.T}, {"log": [1, 2]})
    step, tensors, state = checkpoint.load() or (0, {}, None)
    assert (step, state) == (3, {"log": [1, 2]})
    assert torch.equal(tensors["transposed"], shared.T)
    checkpoint.clear()
    assert not (tmp_path / "ppo").exists()


@pytest.mark.parametrize("moment", ["in the write", "before the rename"])
def test_a_kill_while_writing_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    checkpoint = Checkpoint(tmp_path, PARAMS)
    checkpoint.save(1, {"a": torch.ones(2)}, None)

    def killed(*args: Any, **settings: Any) -> None:
        if moment == "before the rename":
            save_file(*args, **settings)
        else:
            args[1].write_bytes(b"\x10\0\0")
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(checkpoints, "save_file", killed)
        checkpoint.save(2, {"a": torch.zeros(2)}, None)
        os._exit(99)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    step, tensors, _ = checkpoint.load() or (0, {}, None)
    assert (step, tensors["a"].tolist()) == (1, [1.0, 1.0])


def test_other_parameters_discard_it_and_name_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoint(tmp_path / "ppo", PARAMS).save(1, {}, None)
    other = {**PARAMS, "params": {"lr": 2e-3, "sizes": [1, 2]}}
    assert Checkpoint(tmp_path / "ppo", other).load() is None
    assert "params.lr changed from 0.001 to 0.002" in capsys.readouterr().out
    assert not (tmp_path / "ppo").exists()


def test_a_damaged_file_is_discarded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Checkpoint(tmp_path / "ppo", PARAMS)
    checkpoint.save(1, {"a": torch.ones(100)}, None)
    checkpoint.file.write_bytes(checkpoint.file.read_bytes()[:-7])
    assert checkpoint.load() is None
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": (1, 2)}, {"a": [1, 2]}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b changed from 1 to 2"),
        ({"a": 1}, {"a": 1, "b": None}, None),
        ({}, {"b": 1}, "b changed from null to 1"),
    ],
)
def test_the_first_difference_is_named(old: Any, new: Any, expected: str | None) -> None:
    assert changed_key(old, new) == expected


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Muon", "RMSprop"])
def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path: Path, kind: str) -> None:
    def steps(weight: Tensor, optimizer: torch.optim.Optimizer, number: int) -> None:
        for _ in range(number):
            optimizer.zero_grad()
            (weight @ torch.randn(3)).square().sum().backward()
            optimizer.step()

    def start() -> tuple[Tensor, torch.optim.Optimizer]:
        weight = torch.ones(4, 3, requires_grad=True)
        settings = {"momentum": 0.9} if kind == "SGD" else {}
        return weight, getattr(torch.optim, kind)([weight], lr=0.01, **settings)

    torch.manual_seed(0)
    weight, optimizer = start()
    steps(weight, optimizer, 3)
    checkpoint = Checkpoint(tmp_path, PARAMS)
    checkpoint.save(3, {"weight": weight, **optimizer_tensors(optimizer)}, None)
    torch.manual_seed(1)
    steps(weight, optimizer, 3)

    resumed, other = start()
    _, tensors, _ = checkpoint.load() or (0, {}, None)
    with torch.no_grad():
        resumed.copy_(tensors["weight"])
    restore_optimizer(other, tensors)
    torch.manual_seed(1)
    steps(resumed, other, 3)
    assert torch.equal(resumed, weight)


def test_the_last_complete_checkpoint_of_a_trainer_counts(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        folder = tmp_path / "sft" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x")
        if step < 11:
            mark_complete(folder, PARAMS)
    assert hf_checkpoint(tmp_path / "sft", PARAMS) == tmp_path / "sft" / "checkpoint-10"
    assert not (tmp_path / "sft" / "checkpoint-11").exists()
    assert hf_checkpoint(tmp_path / "sft", {**PARAMS, "seed": 1}) is None
    assert not (tmp_path / "sft").exists()
