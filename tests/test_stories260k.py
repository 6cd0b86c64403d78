"""A checkpoint that nobody here made (no pad token, no chat, 260k parameters) through base, dpo and ppo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from tiny_models import WORDS, write_instructions, write_rankings
from transformers import AutoConfig, AutoModelForCausalLM

from tasks import base, dpo, ppo
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.reward.reward_model import from_policy
from tasks.lib.stage import Stage


@pytest.fixture
def given(shared: Path) -> Path:
    return shared / "models/stories260K"


def pretrained(model: Path, text: Path, steps: int) -> dict[str, Any]:
    params = {
        "model": str(model),
        "text": str(text),
        "tiny": {"vocab_size": 320, "hidden": 16, "layers": 1, "heads": 1, "feed_forward": 16, "context": 16,
                 "rope_theta": 1.0},
        "pretraining": {
            "steps": steps, "batch_size": 8, "sequence_length": 128, "learning_rate": 2e-3, "warmup": 0,
            "heldout_blocks": 16, "save_every": 100,
        },
    }  # fmt: skip
    base.run(section("base", **params), Stage("base"))
    return json.loads(Path("reports/base.json").read_text())


def test_continued_pretraining_starts_from_the_weights_that_were_given(
    given: Path, shared: Path, workspace: Path
) -> None:
    """On tinyshakespeare the weights start near 181 and random ones near 516; they must not meet at once."""
    text = shared / "corpora/tinyshakespeare.txt"
    from_weights = pretrained(given, text, 20)
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(given))
    save_model(random, load_tokenizer(given), "random")
    from_random = pretrained(Path("random"), text, 20)
    assert 150 < from_weights["perplexity_before"] < 220
    assert from_random["perplexity_before"] > 450
    assert from_weights["perplexity"] < 60  # 16 after 100 steps
    assert from_random["perplexity"] > 1.5 * from_weights["perplexity"]


def test_ppo_and_dpo_run_on_a_model_without_pad_token(given: Path, workspace: Path) -> None:
    assert load_tokenizer(given).pad_token_id is None
    text = workspace / "text.txt"
    text.write_text("\n".join(WORDS))
    pretrained(given, text, 0)
    shutil.copytree("models/base", "models/sft")
    policy, tokenizer = load_policy("models/sft"), load_tokenizer("models/sft")
    reward = from_policy(policy, seed=0)
    reward.config.reward_mean, reward.config.reward_std = 0.0, 1.0
    save_model(reward, tokenizer, "models/reward")

    write_rankings(dpo.TRAIN, range(6))
    write_rankings(dpo.HELD_OUT, range(6, 8))
    trainer = {"max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 1e-4}
    dpo.run(section("dpo", trainer=trainer, samples=2, max_new_tokens=4), Stage("dpo"))
    report = json.loads(Path("reports/dpo.json").read_text())
    assert report["loss_first"] == pytest.approx(0.693147, abs=1e-5)
    assert report["loss_last"] < report["loss_first"]

    write_instructions(ppo.PROMPTS, range(8))
    write_instructions(ppo.VALIDATION, range(8, 12))
    settings = {
        "iterations": 2, "episodes": 8, "max_new_tokens": 6, "missing_eos": "keep", "learning_rate": 1e-3,
        "kl_budget": 100.0, "validation_prompts": 4, "evaluate_every": 1, "judge": "reward",
        "critic": "reward", "lora": None, "max_content_loss": None,
    }  # fmt: skip
    ppo.run(section("ppo", **settings), Stage("ppo"))
    report = json.loads(Path("reports/ppo.json").read_text())
    assert report["iterations"] == 2 and report["kl_before"] == 0
    trained = load_policy("models/dpo").state_dict()
    assert any(not torch.equal(tensor, trained[name]) for name, tensor in policy.state_dict().items())
