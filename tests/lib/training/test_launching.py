"""Launchers: what they are asked for, and a stage that really runs under torchrun and trains as one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from forked import in_processes
from safetensors.torch import load_file
from sections import section
from tiny_models import write_instructions, write_model, write_rankings

from tasks import dpo, ppo, sft
from tasks.lib.stage import Problem, Stage
from tasks.lib.training import launching

ROOT = Path(__file__).resolve().parents[3]
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"preview_rows": 0, "optimizer": "trainer", "trainer": {
        "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 3e-3, "max_length": 64,
        "eval_steps": 3, "save_steps": 3}},
    "dpo": {"samples": 2, "max_new_tokens": 4, "trainer": {
        "max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 3e-3, "max_length": 64,
        "eval_steps": 2, "save_steps": 2}},
    "ppo": {"method": "rloo", "reward": {"regex": "o"}, "critic": "policy", "iterations": 3, "episodes": 16,
        "epochs": 2, "batch_size": 4, "max_new_tokens": 4, "missing_eos": "keep", "learning_rate": 3e-2,
        "evaluate_every": 1, "kl_budget": 100.0, "validation_prompts": 8,
        "lora": None, "judge": "reward", "max_content_loss": None, "patience": 4,
        "trainer": {"num_generations": 4}},
}  # fmt: skip


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_reads_the_configs(name: str) -> None:
    config = load_config_from_file(str(ROOT / "configs" / f"{name}.yaml"))
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[name]
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name.startswith("zero"):
        assert config.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize(
    ("text", "processes"),
    [
        ("torchrun --nproc_per_node 2", 2),
        (
            "torchrun --nnodes 4 --nproc-per-node=8 --rdzv_backend c10d --rdzv_endpoint $ANNEAL_TEST_HEAD:29500",
            32,
        ),
        ("accelerate launch --config_file configs/ddp.yaml", 2),
        ("accelerate launch --config_file configs/ddp.yaml --num_processes 3", 3),
    ],
)
def test_what_a_launcher_is_asked_for(monkeypatch: pytest.MonkeyPatch, text: str, processes: int) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ANNEAL_TEST_HEAD", "node1")
    launch = launching.read_launcher(text, "sft")
    assert launch.processes == processes
    assert launch.kind == ("MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mpirun -n 2", r"sft\.launcher: mpirun -n 2: expected python, torchrun"),
        ("torchrun --nprocs 2", "unrecognized arguments|ambiguous|required"),
        ("torchrun --nnodes 1:4 --nproc_per_node 8", "changing number of machines"),
        ("accelerate launch", "--config_file is missing"),
        ("accelerate launch --config_file configs/none.yaml", "does not exist"),
    ],
)
def test_a_wrong_launcher_is_one_line(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(Problem, match=said):
        launching.read_launcher(text, "sft")


def test_another_distributed_type_than_asked_for_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    launching.assert_kind("NO")  # nothing was launched, nothing is expected
    monkeypatch.setattr(launching, "_joined", [("sft", launching.Launch(8, "FSDP", 3))])
    with pytest.raises(Problem, match=r"sft: trains as MULTI_GPU, but sft\.launcher asks for FSDP"):
        launching.assert_kind("MULTI_GPU")
    launching.assert_kind("FSDP")


def test_one_process_where_two_were_asked_for_is_a_problem(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m tasks.sft` by hand, or as a launch that went wrong."""
    write_inputs("sft")
    with pytest.raises(Problem, match=r"sft: 1 of 2 processes .* `torchrun --nproc_per_node 2 -m tasks\.sft`"):
        run("sft", launcher="torchrun --nproc_per_node 2")


def write_inputs(stage: str) -> None:
    write_model(Path("models/base" if stage == "sft" else "models/sft"))
    write_instructions(Path("data/curated/train.parquet"), range(24))
    write_instructions(Path("data/curated/validation.parquet"), range(24, 32))
    write_instructions(Path("data/curated/policy.parquet"), range(32, 44))
    write_rankings(Path("data/preferences/train.parquet"), range(12))
    write_rankings(Path("data/preferences/heldout.parquet"), range(12, 16))


def run(stage: str, **changes: Any) -> None:
    """The stage in this process, as its __main__ line runs it."""
    module = {"sft": sft, "dpo": dpo, "ppo": ppo}[stage]
    params = section(stage, **SECTIONS[stage] | changes)
    launching.under_launcher(module.run)(params, Stage(stage, seed=1))


def launched(rank: int, stage: str, port: int) -> None:
    """One of two processes, as torchrun would start it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    run(stage, launcher="torchrun --nproc_per_node 2")


def curve(stage: str) -> list[list[float]]:
    lines = Path(f"reports/plots/{stage}.csv").read_text().splitlines()
    rows = []
    for line in lines[1:]:
        rows.append([float(cell or "nan") for cell in line.split(",")])
    return rows


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_processes_train_as_one_that_accumulates_two_batches(workspace: Path, stage: str) -> None:
    weights, together = in_two_processes(stage)
    run(stage, trainer={**SECTIONS[stage]["trainer"], "gradient_accumulation_steps": 2})
    same(stage, weights, together)


def test_two_processes_of_rloo_end_in_the_weights_of_one(workspace: Path) -> None:
    """The first draws all answers, and each sees all scores of a prompt."""
    write_model(Path("models/reward"))  # it is not read
    weights, together = in_two_processes("ppo")
    run("ppo")
    same("ppo", weights, together)
    start = load_file("models/sft/model.safetensors")
    assert any(float((tensor - start[name]).abs().max()) > 1e-2 for name, tensor in weights.items())


def in_two_processes(stage: str) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """The weights and the curve of a stage that two processes trained."""
    write_inputs(stage)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_processes(2, launched, stage, port)
    return load_file(f"models/{stage}/model.safetensors"), curve(stage)


def same(stage: str, weights: dict[str, torch.Tensor], together: list[list[float]]) -> None:
    """What the stage left now is what it left then, up to rounding."""
    for a, b in zip(curve(stage), together, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5, nan_ok=True)
    for name, tensor in load_file(f"models/{stage}/model.safetensors").items():
        assert float((tensor - weights[name]).abs().max()) < 1e-4, name


@pytest.mark.slow
def test_a_stage_under_torchrun(workspace: Path) -> None:
    """The whole way, as DVC starts it: two processes, one that talks and writes; then a Problem in its own line."""
    write_inputs("sft")
    launcher = "torchrun --standalone --nproc_per_node 2"
    params = section("sft", **SECTIONS["sft"], launcher=launcher).model_dump(mode="json")
    Path("params.yaml").write_text(json.dumps({"seed": 1, "threads": 1, "sft": params}))
    command = f"{launcher} -m tasks.sft"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sft  0/6") == 1
    assert json.loads(Path("reports/sft.json").read_text())["steps"] == 6
    Path("models/base").rename("models/elsewhere")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    problems = [line for line in done.stderr.splitlines() if line.startswith("anneal: ")]
    assert problems and all("models/base does not exist" in line for line in problems)
