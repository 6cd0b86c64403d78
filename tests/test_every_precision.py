"""Weights of 16 bits go through the stages: what is trained has float32 masters or adapters, what is written has 16."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from tiny_models import instruction, ranking, tiny_llama, tiny_tokenizer, write_instructions, write_rankings

from tasks import distill, dpo, evaluate, ppo, reward, sft
from tasks.lib.data.rows import CANDIDATE, INSTRUCTION, content_id, write_parquet
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import kept_dtype
from tasks.lib.reward.reward_model import load_reward
from tasks.lib.stage import Stage

TRAINER = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_length": 64,
           "eval_steps": 3, "save_steps": 6}  # fmt: skip
PPO = {
    "iterations": 1, "episodes": 8, "max_new_tokens": 4, "missing_eos": "keep", "evaluate_every": 1,
    "kl_budget": 100.0, "validation_prompts": 4, "judge": "reward", "max_content_loss": None,
}  # fmt: skip
REWARD = {"epochs": 8, "prompts_per_step": 4, "learning_rate": 1e-2}


def report(stage: str) -> dict[str, Any]:
    return json.loads(Path(f"reports/{stage}.json").read_text())


@pytest.fixture
def inputs(workspace: Path) -> Path:
    tokenizer = tiny_tokenizer()
    save_model(tiny_llama(tokenizer), tokenizer, sft.BASE, dtype=torch.bfloat16)
    write_instructions(sft.TRAIN, range(40))
    for path in (sft.VALIDATION, ppo.PROMPTS):
        write_instructions(path, range(40, 52))
    held_out = [instruction(number) | {"split": "rows", "id": content_id("rows", number)} for number in range(6)]
    write_parquet(evaluate.ROWS[1], held_out, INSTRUCTION)
    write_rankings(reward.TRAIN, range(10))
    write_rankings(reward.HELDOUT, range(10, 12))
    candidates = []
    for number in range(8):
        row = ranking(number)
        candidates.append({"id": row["id"], "prompt": row["prompt"], "answers": row["answers"], "instruction": "x",
                           "model": "x", "sampling": "{}"})  # fmt: skip
    write_parquet(reward.CANDIDATES, candidates, CANDIDATE)
    return workspace


def is_kept_in_16_bits(folder: str) -> bool:
    load = load_reward if folder == "models/reward" else load_policy
    return kept_dtype(folder) == load(folder).dtype == torch.bfloat16


def run_sft(method: str) -> None:
    given = {"r": 4} if method == "lora" else {}
    settings: dict[str, Any] = {"optimizer": "trainer", "method": method, "adapter": given, "trainer": TRAINER}
    sft.run(section("sft", **settings), Stage("sft"))
    assert report("sft")["validation_loss"] < report("sft")["validation_loss_before"] - 0.02
    assert is_kept_in_16_bits("models/sft")


def test_stages_train_all_weights_as_float32_masters(inputs: Path) -> None:
    run_sft("full")
    assert load_policy(sft.OUT).num_parameters() * 2 + 4000 > (sft.OUT / "model.safetensors").stat().st_size
    dpo.run(section("dpo", trainer=TRAINER, samples=2, max_new_tokens=4, lora=None), Stage("dpo"))
    assert report("dpo")["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    reward.run(section("reward", training=REWARD, require_above_chance=False), Stage("reward", seed=1))
    assert report("reward")["train_loss_last"] < report("reward")["train_loss_first"]
    ppo.run(section("ppo", lora=None, critic="reward", **PPO), Stage("ppo"))
    for name in ("dpo", "reward", "ppo"):
        assert is_kept_in_16_bits(f"models/{name}")
    settings: dict[str, Any] = {"teacher": "models/sft", "judge": "none", "training": {"epochs": 1}}
    distill.run(section("distill", max_new_tokens=4, **settings), Stage("distill"))
    assert is_kept_in_16_bits("models/student")


def test_stages_train_adapters_in_float32_on_frozen_weights_in_16_bits(inputs: Path) -> None:
    run_sft("lora")
    dpo.run(section("dpo", trainer=TRAINER, samples=2, max_new_tokens=4, lora={"r": 4}), Stage("dpo"))
    assert report("dpo")["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    settings: dict[str, Any] = {"method": "lora", "lora": {"r": 4}, "training": REWARD}
    reward.run(section("reward", require_above_chance=False, **settings), Stage("reward", seed=1))
    assert report("reward")["train_loss_last"] < report("reward")["train_loss_first"]
    ppo.run(section("ppo", lora={"r": 2}, critic="policy", learning_rate=1e-2, **PPO), Stage("ppo"))
    Path("data/raw/models").mkdir(parents=True)
    evaluate.run(section("evaluate", judge="none", max_new_tokens=4, bootstrap_draws=100), Stage("evaluate"))
    assert report("evaluate")["dpo.rows.kl"] >= -1
    for name in ("sft", "dpo", "reward", "ppo"):
        assert is_kept_in_16_bits(f"models/{name}")
        assert not Path(f"models/{name}/model.safetensors").exists()
