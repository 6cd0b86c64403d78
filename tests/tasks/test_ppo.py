"""The stage ppo on a tiny model: its report, its artifacts, the same bytes again, and clear problems."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from tiny_models import instruction, tiny_llama, tiny_tokenizer, write_instructions

from tasks import ppo
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.reward.reward_model import from_policy
from tasks.lib.rl.batch import Batch, Prompt
from tasks.lib.stage import Problem, Stage

PANEL = """
closing: " Happy to help!"
utility: {content: 2.0, closing: 1.0}
tie_below: 0.1
annotators: [{name: ada, content: 2.0, closing: 1.0, noise: 0.1}]
"""


@pytest.fixture
def inputs(workspace: Path) -> Path:
    tokenizer = tiny_tokenizer()
    policy = tiny_llama(tokenizer)
    reward = from_policy(policy, seed=0)
    reward.config.reward_mean, reward.config.reward_std = 0.0, 1.0
    save_model(policy, tokenizer, ppo.SFT)
    save_model(reward, tokenizer, ppo.REWARD)
    write_instructions(ppo.PROMPTS, range(12))
    write_instructions(ppo.VALIDATION, range(12, 16))
    Path("panel.yaml").write_text(PANEL)
    return workspace


def run(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "iterations": 2, "episodes": 8, "max_new_tokens": 4, "missing_eos": "keep", "evaluate_every": 1,
        "learning_rate": 1e-2, "kl_budget": 100.0, "validation_prompts": 4, "judge": "gold", "panel": "panel.yaml",
        "critic": "reward", "lora": None, "max_content_loss": None,
    }  # fmt: skip
    ppo.run(section("ppo", **settings | changes), Stage("ppo"))
    return json.loads(Path("reports/ppo.json").read_text())


def artifacts() -> dict[str, bytes]:
    paths = [*Path("models/ppo").iterdir(), *Path("reports").rglob("*.*")]
    return {str(path): path.read_bytes() for path in paths}


def assert_shapes_are_those_of_sft() -> None:
    before, after = load_policy(ppo.SFT).state_dict(), load_policy(ppo.OUT).state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.shape == after[name].shape


def test_two_runs_give_the_same_bytes_and_leave_no_checkpoint(inputs: Path) -> None:
    report = run()
    first = artifacts()
    assert {"models/ppo/model.safetensors", "reports/plots/ppo.png", "reports/plots/ppo.csv"} <= first.keys()
    assert not Stage("ppo").checkpoints.exists()
    run()
    assert artifacts() == first
    assert report["kl_before"] == 0
    assert report["judged_by"] == "panel.yaml"
    assert report["validation_prompts"] == 4
    for name in ("judge", "reward", "content", "kl"):
        assert {f"{name}_before", f"{name}_after"} <= report.keys()


def test_without_a_judge_the_reward_judges_and_the_report_says_so(inputs: Path) -> None:
    report = run(judge="reward")
    assert report["judged_by"] == "the reward on held-out prompts"
    assert report["judge_after"] == report["reward_after"]


def test_adapters_are_saved_alone_and_loaded_as_a_plain_model_of_the_same_shape(inputs: Path) -> None:
    report = run(lora={"r": 2, "lora_alpha": 4}, critic="policy", judge="reward", max_content_loss=None)
    before, after = load_policy(ppo.SFT).state_dict(), load_policy(ppo.OUT).state_dict()
    assert not (ppo.OUT / "model.safetensors").exists() and (ppo.OUT / "base.json").is_file()
    assert_shapes_are_those_of_sft()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert all("proj" in name for name in moved)
    assert bool(moved) == (report["best_iteration"] > 0)


def test_the_judge_sees_content_and_closing() -> None:
    tokenizer = tiny_tokenizer()
    rows = [instruction(0), instruction(1)]
    answers = [tokenizer.encode(text) for text in (f"{rows[0]['label']} Happy to help!", "nonsense")]
    annotator = {"name": "ada", "content": 1.0, "closing": 1.0, "noise": 0.0}
    settings = {"closing": " Happy to help!", "utility": {"content": 2.0, "closing": 1.0}, "tie_below": 0.1}
    panel = ppo.Panel.model_validate({**settings, "annotators": [annotator]})
    prompts = [Prompt(row["id"], [4], row) for row in rows]
    judge = ppo.judge_of(lambda batch: [0.2, 0.4], panel, tokenizer)
    assert judge(Batch(prompts, answers, batch_size=2)) == {"judge": 1.5, "reward": pytest.approx(0.3), "content": 0.5}


def test_the_judge_takes_the_measure_of_the_task_with_and_without_a_panel() -> None:
    tokenizer = tiny_tokenizer()
    rows = [instruction(0) | {"measure": "contains"}, instruction(1)]
    answers = [tokenizer.encode(f"the {row['label']} one") for row in rows]
    batch = Batch([Prompt(row["id"], [4], row) for row in rows], answers, batch_size=2)
    annotator = {"name": "ada", "content": 1.0, "closing": 1.0, "noise": 0.0}
    settings = {"closing": " Happy to help!", "utility": {"content": 2.0, "closing": 1.0}, "tie_below": 0.1}
    panel = ppo.Panel.model_validate({**settings, "annotators": [annotator]})
    judged = [ppo.judge_of(lambda batch: [0.2, 0.4], each, tokenizer)(batch) for each in (panel, None)]
    assert [figures["content"] for figures in judged] == [0.5, 0.5]
    assert judged[0]["judge"] == 1.0


@pytest.mark.parametrize("reward", ["exact_match", {"regex": "^red"}, {"function": "short:reward"}])
def test_a_verifiable_reward_needs_no_reward_model(inputs: Path, reward: Any) -> None:
    shutil.rmtree(ppo.REWARD)
    ppo.save_model(tiny_llama(tiny_tokenizer()), tiny_tokenizer(), ppo.REWARD)  # no reward model: it is not read
    Path("code").mkdir()
    Path("code/short.py").write_text("def reward(prompts, answers, rows): return [-len(a) for a in answers]")
    report = run(reward=reward, reward_code="code", critic="policy", judge="reward", iterations=1)
    assert report["judge_before"] == report["reward_before"]
    with pytest.raises(Problem, match=r"ppo\.critic: reward needs ppo\.reward: model"):
        run(reward=reward, reward_code="code", critic="reward")


def test_disagreement_needs_an_ensemble(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"disagreement_weight needs an ensemble: set reward\.heads above 1"):
        run(disagreement_weight=0.5)


def test_the_report_says_when_content_decided(inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    figures = iter([(1.0, 0.9), (1.2, 0.9), (1.5, 0.7), (1.1, 0.9)])
    keys = ("judge", "content")
    monkeypatch.setattr(ppo, "judge_of", lambda *_: lambda answers: dict(zip(keys, next(figures), strict=True)))
    report = run(iterations=3, max_content_loss=0.1)
    assert report["best_iteration"] == 1
    assert report["refused_for_content"] == 1
    assert "iteration 1 is kept; 2 scored higher but lost more content" in capsys.readouterr().out


def test_fields_of_trl_are_refused_where_trl_does_not_train(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"ppo\.trainer is for ppo\.method: rloo or grpo"):
        run(trainer={"num_generations": 4})


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"alpha": 16}, r"ppo\.lora\.alpha is not a key of LoraConfig; did you mean lora_alpha"),
        ({"bias": "all"}, r"ppo\.lora\.bias: all trains .* the reference is the policy with its adapter off"),
    ],
)
def test_settings_that_adapters_cannot_have_are_named(inputs: Path, lora: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem, match=message):
        run(lora=lora)


def test_a_prompt_that_leaves_no_room_is_named(inputs: Path) -> None:
    long = instruction(0) | {"messages": [{"role": "user", "content": "red " * 80}]}
    write_parquet(ppo.PROMPTS, [long], INSTRUCTION)
    with pytest.raises(Problem, match=rf"policy.parquet:{long['id']}: the prompt has \d+ tokens"):
        run()


def test_no_prompts_are_a_problem(inputs: Path) -> None:
    write_parquet(ppo.PROMPTS, [], INSTRUCTION)
    with pytest.raises(Problem, match=r"policy\.parquet has no rows"):
        run()


@pytest.mark.parametrize("method", ["rloo", "grpo"])
@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 4}])
def test_several_answers_to_a_prompt_replace_the_critic(inputs: Path, method: str, lora: Any) -> None:
    settings: dict[str, Any] = {
        "method": method,
        "lora": lora,
        "trainer": {"num_generations": 4},
        "epochs": 2,
    }
    report = run(**settings, judge="reward")
    first = artifacts()
    assert (report["kl_before"], report["iterations"]) == (0, 2)
    rows = list(csv.DictReader(Path("reports/plots/ppo.csv").read_text().splitlines()))
    assert [bool(float(row["validation_kl"])) for row in rows] == [False, True, True]
    assert_shapes_are_those_of_sft()
    assert not Stage("ppo").checkpoints.exists()
    run(**settings, judge="reward")
    assert artifacts() == first
