"""RLOO and GRPO through TRL: what they compute, that they learn, and that a killed run ends in the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import ppo_config
from tiny_models import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.rl import ppo_training, rloo_grpo
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.ppo import roll_out
from tasks.lib.rl.ppo_training import next_prompts
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem, Stage

STAGE, GOOD = Stage("ppo"), 5

SIZES = LlamaConfig(
    vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip


def prompt(number: int) -> Prompt:
    """Two to five tokens of 5 to 13."""
    return Prompt(f"row{number}", [5 + (number * place) % 9 for place in range(2 + number % 4)])


PROMPTS = [prompt(number) for number in range(1, 9)]


def good(answers: list[list[int]]) -> list[float]:
    """The more GOOD tokens, the better."""
    return [float(answer.count(GOOD)) for answer in answers]


def config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "iterations": 3, "episodes": 16, "epochs": 2, "max_new_tokens": 3, "temperature": 0.7, "missing_eos": "keep",
        "learning_rate": 1e-2, "kl_budget": 1e9, "batch_size": 8, "evaluate_every": 1, "patience": 99,
        "max_content_loss": None,
    }  # fmt: skip
    return ppo_config(**settings | changes)


def run(method: Any = "rloo", lora: dict[str, Any] | None = None, given: Any = None, **changes: Any) -> tuple[Any, ...]:
    """Train the tiny policy of models/sft; the state at the end and the bytes of its weights."""
    if not Path("models/sft").exists():
        torch.manual_seed(0)
        save_model(LlamaForCausalLM(SIZES), tiny_tokenizer(), "models/sft")
    tokenizer, settings = load_tokenizer("models/sft"), config(**changes)
    env = Environment(
        prompts=PROMPTS, validation=PROMPTS, reward=lambda batch: good(batch.answers),
        judge=lambda batch: {"judge": sum(good(batch.answers)) / len(batch)},
        eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id, seed_of=STAGE.seed_of,
    )  # fmt: skip
    models = ActorCritic(load_policy("models/sft"), None, lora, 0)
    result = rloo_grpo.train(method, models, env, settings, given or {"num_generations": 4}, tokenizer, STAGE, {})
    return result.state(), [p.detach().numpy().tobytes() for p in models.policy_parameters().values()]


@pytest.mark.parametrize(("method", "lora"), [("rloo", None), ("grpo", {"r": 4, "lora_alpha": 16})])
def test_what_is_rewarded_becomes_frequent(workspace: Path, method: Any, lora: dict[str, Any] | None) -> None:
    settings = {"iterations": 8, "episodes": 32, "batch_size": 32, "evaluate_every": 8, "learning_rate": 3e-2}
    log = run(method, lora, **settings)[0]["log"]
    assert log[0]["validation_judge"] < 0.5
    assert log[-1]["validation_judge"] > 1.0
    assert {"reward", "kl", "policy_loss", "answer_tokens", "ended", "no_signal"} <= log[1].keys()


def captured(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """The trainer of TRL, before it trains."""
    found: list[Any] = []

    def keep(trainer: Any, *_: Any, **__: Any) -> None:
        found.append(trainer)
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)

    monkeypatch.setattr(rloo_grpo.hf_trainer, "train", keep)
    run(**settings)
    return found[0]


def first_samples(trainer: Any) -> dict[str, torch.Tensor]:
    """What TRL makes of the first 16 prompts."""
    numbers = list(trainer._get_train_sampler())[:16]
    return trainer._generate_and_score_completions([trainer.train_dataset[number] for number in numbers])


def test_an_advantage_is_the_score_less_the_mean_of_the_others(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave-one-out on the very answers that PPO draws; one that did not end is worth `missing_eos_value`."""
    trainer = captured(monkeypatch, missing_eos="penalty", missing_eos_value=-2.0)
    given = first_samples(trainer)

    prompts: list[Prompt] = []
    for prompt in next_prompts(trainer.env, 4, 1):
        prompts += [prompt] * 4
    seed = trainer.env.seed_of("roll out", 1)
    answers = roll_out(trainer.models, prompts, trainer.env, trainer.ppo, seed).answers
    scores = good(answers)
    for number, answer in enumerate(answers):
        if answer[-1] != trainer.env.eos_id:
            scores[number] -= 2
    groups = torch.tensor(scores).view(4, 4)
    expected = (groups - (groups.sum(1, keepdim=True) - groups) / 3).flatten()
    assert torch.allclose(given["advantages"], expected, atol=1e-5)
    assert unpadded(given["completion_ids"], given["completion_mask"]) == answers


def unpadded(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[is_token].tolist() for row, is_token in zip(ids, mask.bool(), strict=True)]


def test_log_probs_do_not_depend_on_left_padding(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On learned positions, which TRL would let the padding move; at the temperature of the samples."""
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=16, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    save_model(GPT2LMHeadModel(sizes), tiny_tokenizer(), "models/sft")
    trainer = captured(monkeypatch)
    given = first_samples(trainer)
    prompts = unpadded(given["prompt_ids"], given["prompt_mask"])
    answers = unpadded(given["completion_ids"], given["completion_mask"])
    assert len({len(prompt) for prompt in prompts}) > 1
    model = trainer.models.policy
    with torch.no_grad():
        own = answer_logprobs(model, prompts, answers, batch_size=1, temperature=0.7)
    assert torch.allclose(given["old_logps"], torch.stack([row.sum() for row in own]), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "lora", "place", "call"),
    [("rloo", {"r": 2, "lora_alpha": 4}, "evaluate", 4), ("grpo", None, "keep_or_stop", 2)],
)
def test_a_killed_run_ends_in_the_same_bytes(
    method: Any, lora: Any, place: str, call: int, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the n-th call of a function; the first evaluation is that of the policy at the start."""
    expected = run(method, lora)
    shutil.rmtree(STAGE.checkpoints)
    original, calls = getattr(ppo_training, place), []

    def deadly(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ppo_training, place, deadly)
        child = os.fork()
        if child == 0:
            try:
                run(method, lora)
            finally:
                os._exit(99)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert list(STAGE.checkpoints.glob("checkpoint-*/complete.json"))
    assert run(method, lora) == expected


def test_a_run_that_is_asked_to_stop_saves_at_the_end_of_its_iteration(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle the answers of the iteration would be drawn again, from another policy."""
    expected = run(checkpoint_every=3)
    shutil.rmtree(STAGE.checkpoints)
    score_answers = rloo_grpo.score_answers

    def asked_to_stop(*arguments: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return score_answers(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(rloo_grpo, "score_answers", asked_to_stop)
        run(checkpoint_every=3)
    assert stopped.value.code == 143
    assert [path.name for path in STAGE.checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(checkpoint_every=3) == expected


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        (
            {"num_generation": 4},
            {},
            r"ppo\.trainer\.num_generation is not a key of RLOOConfig; did you mean num_g",
        ),
        ({"temperature": 1.0}, {}, r"trainer\.temperature cannot be set here: set ppo\.temperature"),
        ({"top_p": 0.9}, {}, r"trainer\.top_p cannot be set here: answers are drawn as in PPO"),
        ({"num_generations": 3}, {}, r"episodes = 16 is not a multiple of ppo\.trainer\.num_generations = 3"),
        ({}, {"minibatches": 3}, r"episodes = 16 is not a multiple of ppo\.minibatches"),
    ],
)
def test_settings_without_effect_are_refused(given: Any, changes: Any, message: str, workspace: Path) -> None:
    from trl import RLOOConfig

    with pytest.raises(Problem, match=message):
        rloo_grpo.configured(RLOOConfig, config(**changes), given, STAGE)
