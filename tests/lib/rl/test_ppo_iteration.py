"""One iteration of PPO, number by number; a run on a toy; a killed run ends in the same bytes."""

from __future__ import annotations

import itertools
import os
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from sections import ppo_config
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tasks.lib.rl import ppo, ppo_training
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.ppo import Episodes
from tasks.lib.rl.ppo_training import Run
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint

EOS, GOOD = 1, 5
LENGTHS = {"first": 1, "last": 4, "missing": 4, "double": 2}  # of 4 tokens with the EOS there


TINY: dict[str, Any] = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


def prompt(number: int) -> Prompt:
    """Two to five tokens of 3 to 11."""
    return Prompt(f"row{number}", [3 + (number * place) % 9 for place in range(2 + number % 4)])


PROMPTS = [prompt(number) for number in range(1, 17)]


def seed_of(*words: object) -> int:
    return zlib.crc32(repr(words).encode()) >> 1


def good_tokens(batch: Batch) -> list[float]:
    """The more GOOD tokens, the better."""
    return [float(answer.count(GOOD)) for answer in batch.answers]


def environment(**changes: Any) -> Environment:
    settings: dict[str, Any] = {
        "prompts": PROMPTS,
        "validation": PROMPTS[:8],
        "reward": good_tokens,
        "judge": lambda batch: {"judge": sum(good_tokens(batch)) / len(batch)},
        "eos_id": EOS,
        "pad_id": EOS,  # pad = EOS: masks must come from lengths
        "seed_of": seed_of,
    }
    return Environment(**settings | changes)


def config(**changes: Any) -> PPOConfig:
    settings: dict[str, Any] = {
        "iterations": 4, "episodes": 16, "max_new_tokens": 4, "temperature": 1.0, "missing_eos": "keep",
        "learning_rate": 1e-2, "kl_budget": 100.0, "batch_size": 8, "evaluate_every": 2, "patience": 4,
        "max_content_loss": None,
    }  # fmt: skip
    return ppo_config(**settings | changes)


def policy() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


def reward_model(seed: int = 5) -> Any:
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**TINY, num_labels=1)).eval()
    model.config.reward_mean, model.config.reward_std = 0.3, 0.5
    return model


def test_the_critic_begins_as_the_mean_of_an_ensembles_heads() -> None:
    ensemble = LlamaForSequenceClassification(LlamaConfig(**TINY, num_labels=3, reward_heads=2)).eval()
    weight = ensemble.score.weight.detach()
    critic = ActorCritic(policy(), ensemble)
    assert torch.allclose(critic.value_head.weight, (weight[:1] + weight[1:2]) / 2)


def models(**changes: Any) -> ActorCritic:
    return ActorCritic(policy(), **changes)


def copied(actor_critic: ActorCritic) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in actor_critic.policy_parameters().items()}


def assert_policy(actor_critic: ActorCritic, expected: dict[str, torch.Tensor]) -> None:
    """The policy has these very weights."""
    for name, parameter in actor_critic.policy_parameters().items():
        assert torch.equal(parameter, expected[name]), name


def episodes(lengths: list[int], score_at: str, scores: list[float], kl: float = 0.0) -> Episodes:
    is_action, is_state = ppo.masks(lengths, score_at)
    answers = [[5] * length for length in lengths]
    return Episodes(
        iteration=1, batch=Batch([Prompt("x", [4])] * len(lengths), answers, batch_size=8),
        scores=torch.tensor(scores), logprobs=torch.full(is_action.shape, kl),
        reference_logprobs=torch.zeros(is_action.shape),
        values=torch.full(is_state.shape, 0.5).where(is_state, 0), is_action=is_action, is_state=is_state,
    )  # fmt: skip


def run(folder: Path, env: Environment, settings: PPOConfig, actor_critic: ActorCritic) -> Run:
    return ppo_training.train(actor_critic, env, settings, Checkpoint(folder, {"config": settings.model_dump()}))


# --- masks, rewards, advantages ---


@pytest.mark.parametrize(
    ("where", "actions", "states_after", "states_at"),
    [
        ("first", "1000", "11000", "10000"),
        ("last", "1111", "11111", "11110"),
        ("missing", "1111", "11111", "11110"),
        ("double", "1100", "11100", "11000"),
    ],
)
def test_masks_of_four_tokens(where: str, actions: str, states_after: str, states_at: str) -> None:
    """The EOS is an action; the state after it has a value only if the score is paid there."""
    lengths = [LENGTHS[where], 4]  # the second row keeps the width at four
    for score_at, states in (("after_eos", states_after), ("eos", states_at)):
        is_action, is_state = ppo.masks(lengths, score_at)
        assert "".join(map(str, is_action[0].int().tolist())) == actions
        assert "".join(map(str, is_state[0].int().tolist())) == states


@pytest.mark.parametrize(
    ("score_at", "expected"),
    [
        ("after_eos", [[-0.2, -0.2, 3.0, 0, 0], [-0.2] * 4 + [5.0]]),
        ("eos", [[-0.2, 2.8, 0, 0, 0], [-0.2] * 3 + [4.8, 0]]),
    ],
)
def test_the_kl_is_paid_at_each_token_and_the_score_once(score_at: str, expected: list[list[float]]) -> None:
    """beta 0.1, log-ratio 2 at each token, scores 3 and 5, two and four tokens."""
    rewards = ppo.token_rewards(episodes([2, 4], score_at, [3.0, 5.0], kl=2.0), config(), beta=0.1)
    torch.testing.assert_close(rewards, torch.tensor(expected))


@pytest.mark.parametrize("score_at", ["after_eos", "eos"])
def test_advantages_of_a_padded_row_are_those_of_the_row_alone(score_at: str) -> None:
    settings = config(score_at=score_at, whiten_advantages=False)
    both, alone = episodes([2, 4], score_at, [3.0, 5.0], kl=0.7), episodes([2], score_at, [3.0], kl=0.7)
    padded, _ = ppo.estimate_advantages(ppo.token_rewards(both, settings, 0.1), both, settings)
    single, _ = ppo.estimate_advantages(ppo.token_rewards(alone, settings, 0.1), alone, settings)
    torch.testing.assert_close(padded[:1, :2], single)
    assert (padded[0, 2:] == 0).all()


def test_with_lambda_1_an_advantage_is_the_score_minus_the_value() -> None:
    settings = config(whiten_advantages=False, lam=1.0)
    made = episodes([2], "after_eos", [3.0])
    advantages, returns = ppo.estimate_advantages(ppo.token_rewards(made, settings, 0.1), made, settings)
    torch.testing.assert_close(advantages, torch.full((1, 2), 2.5))
    torch.testing.assert_close(returns, torch.full((1, 3), 3.0))


@pytest.mark.parametrize(
    ("rule", "expected"), [("replace", [2.0, -1.0]), ("penalty", [2.0, 1.0]), ("keep", [2.0, 2.0])]
)
def test_an_answer_without_eos_is_replaced_lowered_or_kept(rule: str, expected: list[float]) -> None:
    scores = ppo.apply_missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), config(missing_eos=rule))
    assert scores.tolist() == expected


def test_a_constant_reward_gives_finite_advantages() -> None:
    settings = config(whiten_rewards=True)
    made = episodes([3, 3], "after_eos", [1.0, 1.0])
    advantages, _ = ppo.estimate_advantages(ppo.token_rewards(made, settings, 0.0), made, settings)
    assert torch.isfinite(advantages).all()
    assert advantages.abs().max() < 10


# --- the models ---


def test_the_critic_starts_as_the_normalised_reward() -> None:
    """The value of the state after EOS is (raw - mean) / std of the reward model, padding or not."""
    rm = reward_model()
    prompts, answers = [[5, 6, 7], [4]], [[8, EOS], [9, 9, 9, EOS]]
    values = models(reward_model=rm).values(prompts, answers)
    for i in range(2):
        ids = torch.tensor([prompts[i] + answers[i]])
        raw = rm.score(rm.base_model(ids).last_hidden_state)[0, -1, 0]
        assert values[i, len(answers[i])].item() == pytest.approx((raw.item() - 0.3) / 0.5, abs=1e-5)


def test_a_value_head_on_the_policy_starts_at_zero() -> None:
    assert (models().values([[5, 6]], [[7, EOS]]) == 0).all()


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 4}])
def test_the_reference_is_the_policy_at_the_start_and_stays_it(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    actor_critic = models(lora=lora)
    before = ppo.answer_logprobs(actor_critic.policy, [[4]], [[7, 8]], batch_size=1)[0]
    first_token = environment(reward=lambda batch: [float(answer[0]) for answer in batch.answers])
    result = run(tmp_path, first_token, config(iterations=2, evaluate_every=1), actor_critic)
    with actor_critic.reference() as reference:
        after = ppo.answer_logprobs(reference, [[4]], [[7, 8]], batch_size=1)[0]
    torch.testing.assert_close(before, after)
    assert result.log[0]["validation_kl"] == 0
    assert result.log[1]["validation_kl"] != 0


def test_merged_adapters_are_the_adapted_policy(tmp_path: Path) -> None:
    actor_critic = models(lora={"r": 2, "lora_alpha": 4})
    run(tmp_path, environment(), config(evaluate_every=1), actor_critic)
    adapted = ppo.answer_logprobs(actor_critic.policy, [[4]], [[7, 8]], batch_size=1)[0]
    assert actor_critic.adapter is not None
    merged = actor_critic.adapter.merge_and_unload()
    torch.testing.assert_close(
        ppo.answer_logprobs(merged, [[4]], [[7, 8]], batch_size=1)[0], adapted, atol=1e-5, rtol=0
    )
    assert merged.state_dict().keys() == policy().state_dict().keys()


# --- updates ---


def scored(actor_critic: ActorCritic, settings: PPOConfig, env: Environment) -> Episodes:
    chosen = ppo_training.next_prompts(env, settings.episodes, 1)
    batch = ppo.roll_out(actor_critic, chosen, env, settings, seed=0)
    return ppo.score(actor_critic, batch, env, settings, 1)


def gradient(batch_size: int, **changes: Any) -> torch.Tensor:
    settings, actor_critic = config(batch_size=batch_size, **changes), models(reward_model=reward_model())
    made = scored(actor_critic, config(batch_size=16), environment())
    advantages, returns = ppo.estimate_advantages(ppo.token_rewards(made, settings, 0.1), made, settings)
    optimizer = torch.optim.SGD(actor_critic.policy_parameters().values(), lr=0.0)
    figures = ppo.minibatch_gradient(actor_critic, optimizer, made, advantages, returns, list(range(16)), settings)
    assert figures["largest_log_ratio"] < 1e-5  # ratio 1 on the first minibatch
    assert figures["approx_kl"] < 1e-10
    gradients = []
    for parameter in actor_critic.policy_parameters().values():
        assert parameter.grad is not None
        gradients.append(parameter.grad.flatten())
    return torch.cat(gradients)


def test_the_size_of_a_forward_pass_does_not_change_the_gradient() -> None:
    torch.testing.assert_close(gradient(16), gradient(3), atol=1e-6, rtol=1e-4)


def test_a_policy_that_is_not_the_scored_one_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if policy and update were divided by different temperatures."""
    original = ppo.sampled
    monkeypatch.setattr(ppo, "sampled", lambda *a, **k: original(*a, **k | {"temperature": 0.9}))
    with pytest.raises(Problem, match=r"iteration 1: before the first step .* expected 0"):
        run(tmp_path, environment(), config(), models())


def test_a_loss_that_is_nan_takes_no_step_and_names_the_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    actor_critic = models()
    before = copied(actor_critic)
    monkeypatch.setattr(ppo, "ppo_value_loss", lambda values, *_: values.sum() * float("nan"))
    with pytest.raises(Problem, match=r"iteration 1: the loss is nan.* prompts row\d+, .* no step was taken"):
        run(tmp_path, environment(), config(), actor_critic)
    assert_policy(actor_critic, before)


def test_a_reward_that_is_nan_names_the_prompts(tmp_path: Path) -> None:
    env = environment(reward=lambda batch: [float("nan")] + [0.0] * (len(batch) - 1))
    with pytest.raises(Problem, match=r"iteration 1: the reward is not finite for the prompts row\d+;"):
        run(tmp_path, env, config(), models())


def test_answers_that_never_end_are_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"none of 16 answers ended within 4 tokens; raise ppo.max_new_tokens"):
        run(tmp_path, environment(eos_id=99, pad_id=0), config(missing_eos="replace"), models())


@pytest.mark.parametrize("changes", [{"episodes": 1}, {"episodes": 1, "max_new_tokens": 1}, {"minibatches": 5}])
def test_a_single_episode_and_uneven_minibatches_are_fine(changes: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path, environment(), config(iterations=2, **changes), models(reward_model=reward_model()))
    assert result.log[-1]["iteration"] == 2


@pytest.mark.parametrize(("episodes", "minibatches", "sizes"), [(16, 5, [4, 3, 3, 3, 3]), (16, 4, [4] * 4)])
def test_an_epoch_has_as_many_steps_as_minibatches_and_the_figures_are_those_of_the_last(
    episodes: int, minibatches: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As `torch.chunk` would divide them, 16 episodes are four minibatches, not five."""
    taken: list[list[int]] = []
    losses: list[float] = []
    original = ppo.minibatch_gradient

    def noted(*arguments: Any) -> dict[str, float]:
        figures = original(*arguments)
        taken.append(arguments[5])
        losses.append(figures["policy_loss"])
        return figures

    monkeypatch.setattr(ppo, "minibatch_gradient", noted)
    settings = config(iterations=1, episodes=episodes, minibatches=minibatches, epochs=2)
    log = run(tmp_path, environment(), settings, models()).log
    assert [len(rows) for rows in taken] == sizes * 2
    for epoch in (taken[:minibatches], taken[minibatches:]):
        assert sorted(itertools.chain(*epoch)) == list(range(episodes))
    assert log[1]["policy_loss"] == pytest.approx(sum(losses[minibatches:]) / minibatches)


def test_more_minibatches_than_episodes_are_refused() -> None:
    with pytest.raises(ValidationError, match="minibatches: 5 is more than episodes: 4; lower it"):
        config(episodes=4, minibatches=5)


def test_a_warning_names_a_constant_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = environment(reward=lambda batch: [0.5] * len(batch))
    run(tmp_path, env, config(iterations=1), models())
    assert "iteration 1: every answer got the reward 0.5" in capsys.readouterr().out


# --- runs ---


def test_every_prompt_is_taken_once_per_epoch() -> None:
    drawn: list[str] = []
    for iteration in (1, 2, 3, 4):
        drawn += [prompt.id for prompt in ppo_training.next_prompts(environment(), 8, iteration)]
    assert sorted(drawn[:16]) == sorted(drawn[16:]) == sorted(p.id for p in PROMPTS)
    assert drawn[:16] != drawn[16:]


@pytest.mark.parametrize(
    ("changes", "rate"), [({}, 1e-2), ({"reward_model": 5}, 1e-2), ({"lora": {"r": 4, "lora_alpha": 16}}, 2e-2)]
)
def test_a_rewarded_token_becomes_frequent(changes: dict[str, Any], rate: float, tmp_path: Path) -> None:
    """A bandit: with either critic, with and without adapters."""
    if "reward_model" in changes:
        changes = {"reward_model": reward_model()}
    settings = config(iterations=8, episodes=32, learning_rate=rate, evaluate_every=4, batch_size=32)
    log = run(tmp_path, environment(), settings, models(**changes)).log
    assert log[0]["validation_judge"] < 0.6
    assert log[-1]["validation_judge"] > 1.0  # four times as often


def test_beta_adapts_to_the_kl_of_the_rollouts(tmp_path: Path) -> None:
    settings = config(iterations=3, beta=0.1, beta_target=1000.0, beta_horizon=160)
    log = run(tmp_path, environment(), settings, models()).log
    assert [row["beta"] for row in log[1:]] == pytest.approx([0.1, 0.1 * 0.98, 0.1 * 0.98**2])


def judged(
    scores: list[float], kls: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Any:
    """A run whose evaluations give these scores and KLs."""
    content = changes.pop("content", [1.0] * len(scores))
    evaluations = zip(scores, kls, content, strict=True)

    def evaluate(*_: Any) -> dict[str, float]:
        score, kl, content = next(evaluations)
        return {"validation_judge": score, "validation_kl": kl, "validation_content": content}

    monkeypatch.setattr(ppo_training, "evaluate", evaluate)
    return run(tmp_path, environment(), config(iterations=len(scores) - 1, evaluate_every=1, **changes), models())


def test_the_best_policy_is_kept_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged([1, 3, 2, 2.5], [0, 1, 1, 1], tmp_path, monkeypatch)
    assert (result.best, result.stop) == (1, "all iterations done")


def test_training_stops_without_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judged([1, 3, 2, 3, 9], [0, 1, 1, 1, 1], tmp_path, monkeypatch, patience=2)
    assert (result.best, result.stop) == (1, "no gain in 2 evaluations at iteration 3")


def test_training_stops_beyond_the_kl_budget_and_does_not_keep_that_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = judged([1, 2, 9, 9], [0, 1, 5, 1], tmp_path, monkeypatch, kl_budget=4.0)
    assert (result.best, result.stop) == (1, "KL above the budget at iteration 2")


def test_a_policy_that_loses_content_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = [0.9, 0.86, 0.84]
    result = judged([1, 2, 3], [0, 1, 1], tmp_path, monkeypatch, content=content, max_content_loss=0.05)
    assert result.best == 1


def test_a_run_that_gains_nothing_ends_in_the_policy_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor_critic = models()
    start = copied(actor_critic)
    monkeypatch.setattr(ppo_training, "evaluate", lambda *_: {"validation_judge": 1.0, "validation_kl": 0.0})
    assert run(tmp_path, environment(), config(), actor_critic).best == 0
    assert_policy(actor_critic, start)


@pytest.mark.parametrize(
    ("function", "call", "lora"),
    [
        ("score", 1, None),  # before the first checkpoint
        ("update", 3, {"r": 2, "lora_alpha": 4}),  # just after one: rolled out, no step taken yet
        ("evaluate", 2, None),  # steps taken, not yet saved
        ("_save", 2, None),
    ],
)
def test_a_run_killed_at_any_point_ends_in_the_same_bytes(
    function: str, call: int, lora: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the n-th call of a step; checkpoints every second iteration, beta adapts."""
    settings = config(checkpoint_every=2, beta_target=1.0, evaluate_every=2)

    def outcome(folder: Path) -> tuple[Any, list[bytes]]:
        actor_critic = models(reward_model=reward_model(), lora=lora)
        result = run(folder, environment(), settings, actor_critic)
        return result.state(), [p.detach().numpy().tobytes() for p in actor_critic.policy_parameters().values()]

    expected = outcome(tmp_path / "whole")
    original, calls = getattr(ppo_training, function), []

    def deadly(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ppo_training, function, deadly)
        child = os.fork()
        if child == 0:
            try:
                outcome(tmp_path / "killed")
            finally:
                os._exit(99)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert outcome(tmp_path / "killed") == expected
