"""A run of PPO: iterations until the judge is pleased no more; the best policy kept; resumable at any point.

A small reward model is soon exploited: its reward rises while the true objective falls (arXiv 2210.10760). So
a judge that is not the training reward looks at held-out prompts, and a KL budget ends the run.
Nothing here is random but by a seed made of the iteration and the purpose, so an iteration is a function of
the weights before it: a resumed run repeats a lost one exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.losses import adaptive_beta
from tasks.lib.rl.ppo import (
    Environment,
    Prompt,
    estimate_advantages,
    permutation,
    roll_out,
    score,
    sequence_logprobs,
    token_rewards,
    update,
)
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from tasks.lib.training.distributed import first_before_others, is_first


def train(
    models: ActorCritic,
    env: Environment,
    config: PPOConfig,
    checkpoint: Checkpoint,
    progress: Callable[..., None] = lambda *_, **__: None,
) -> dict[str, Any]:
    """Train, and leave the best policy in `models`. Returns {log: [row per iteration], best, stop, refused}.

    The best is the one with the best judge's score among those evaluated within the KL budget (and the
    content loss); the starting policy, iteration 0, is one of them. `refused` are the iterations that scored higher
    than the best before them and lost too much content. Raises Problem, before any harm, when a
    number is not finite or when no answer ends.
    """
    optimizer = torch.optim.Adam(
        [{"params": models.policy_parameters().values()}, {"params": models.critic_parameters().values()}],
        eps=config.adam_eps,
    )
    run = _resumed(models, optimizer, checkpoint) or begin(models, env, config)
    for iteration in range(run["iteration"] + 1, config.iterations + 1):
        if run["stop"]:
            break
        _set_learning_rates(optimizer, config, iteration)
        chosen = next_prompts(env, config.episodes, iteration)
        answers, drawn_at = roll_out(
            models, [p.tokens for p in chosen], env, config, env.seed_of("roll out", iteration)
        )
        episodes = score(models, chosen, answers, env, config, iteration, drawn_at)
        rewards = token_rewards(episodes, config, run["beta"])
        advantages, returns = estimate_advantages(rewards, episodes, config)
        figures = update(models, optimizer, episodes, advantages, returns, env.seed_of, config)

        kl = float(episodes.kl.sum(1).mean())
        row = {"iteration": iteration, "reward": float(episodes.scores.mean()), "kl": kl, "beta": run["beta"]}
        row |= figures | {
            "ended": sum(a[-1] == env.eos_id for a in answers) / len(answers),
            "answer_tokens": sum(map(len, answers)) / len(answers),
        }
        if config.beta_target:
            run["beta"] = adaptive_beta(run["beta"], kl, config.beta_target, config.beta_horizon, len(answers))
        run["log"].append(row)
        run["iteration"] = iteration
        if iteration % config.evaluate_every == 0 or iteration == config.iterations:
            row |= evaluate(models, env, config)
            keep_or_stop(run, row, models, config)
        if iteration % config.checkpoint_every == 0 or run["stop"]:
            _save(run, models, optimizer, checkpoint)
        progress(
            iteration,
            config.iterations,
            **{k: row[k] for k in ("reward", "kl", "validation_judge") if k in row},
        )
    return finish(run, models)


def next_prompts(env: Environment, count: int, iteration: int) -> list[Prompt]:
    """The prompts of `next_numbers`."""
    return [env.prompts[number] for number in next_numbers(env, count, iteration)]


def next_numbers(env: Environment, count: int, iteration: int) -> list[int]:
    """The next `count` places in an endless stream of prompts, which is shuffled anew at each pass over them."""
    rows = len(env.prompts)
    places = range((iteration - 1) * count, iteration * count)
    orders = {p: permutation(rows, env.seed_of("prompts", p)) for p in {place // rows for place in places}}
    return [orders[place // rows][place % rows] for place in places]


def evaluate(models: ActorCritic, env: Environment, config: PPOConfig) -> dict[str, float]:
    """The judge's figures on sampled answers to the validation prompts, and their KL from the reference.

    The KL is in nats per sequence, at the sampling temperature. The seed is
    always the same: so is, in part, the noise of sampling before and after.
    """
    prompts = [prompt.tokens for prompt in env.validation]
    answers, _ = roll_out(models, prompts, env, config, env.seed_of("validation"))
    own = sequence_logprobs(models.policy, prompts, answers, config)
    with models.reference() as reference_model:
        reference = sequence_logprobs(reference_model, prompts, answers, config)
    kl = sum(float((a - b).sum()) for a, b in zip(own, reference, strict=True)) / len(prompts)
    return {f"validation_{key}": value for key, value in (env.judge(answers) | {"kl": kl}).items()}


def keep_or_stop(run: dict[str, Any], row: dict[str, float], models: ActorCritic, config: PPOConfig) -> None:
    """Keep the policy if the judge likes it best so far and it is within bounds; decide whether to go on."""
    start, best = run["log"][0], next(r for r in run["log"] if r["iteration"] == run["best"])
    within = row["validation_kl"] <= config.kl_budget
    allowed = within and (
        config.max_content_loss is None
        or row["validation_content"] >= start["validation_content"] - config.max_content_loss
    )
    if allowed and row["validation_judge"] > best["validation_judge"]:
        run |= {"best": row["iteration"], "stale": 0, "kept": _copied(models.policy_parameters())}
    else:
        run["stale"] += 1
        if within and not allowed and row["validation_judge"] > best["validation_judge"]:
            run["refused"].append(row["iteration"])  # the content alone decided
    if not within:
        run["stop"] = f"KL above the budget at iteration {row['iteration']}"
    elif run["stale"] >= config.patience:
        run["stop"] = f"no gain in {config.patience} evaluations at iteration {row['iteration']}"


def begin(models: ActorCritic, env: Environment, config: PPOConfig) -> dict[str, Any]:
    row = {"iteration": 0, "beta": config.beta} | evaluate(models, env, config)
    return {
        "iteration": 0, "beta": config.beta, "log": [row], "best": 0, "stale": 0, "stop": "", "refused": [],
        "kept": _copied(models.policy_parameters()),
    }  # fmt: skip


def _save(run: dict[str, Any], models: ActorCritic, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    if not is_first():
        return
    current = models.policy_parameters() | models.critic_parameters()
    tensors = {f"current.{name}": p.detach() for name, p in current.items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in run["kept"].items()}
    state = {key: value for key, value in run.items() if key != "kept"}
    checkpoint.save(run["iteration"], tensors | optimizer_tensors(optimizer), state)


def _resumed(models: ActorCritic, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> dict[str, Any] | None:
    with first_before_others():  # the first may discard it
        found = checkpoint.load()
    if found is None:
        return None
    step, tensors, state = found
    print(f"ppo: going on after iteration {step}", flush=True)
    parts = {
        part: {k.removeprefix(part): t for k, t in tensors.items() if k.startswith(part)}
        for part in ("current.", "kept.")
    }
    put_back(models.policy_parameters() | models.critic_parameters(), parts["current."])
    restore_optimizer(optimizer, tensors)
    return state | {"kept": parts["kept."]}


def finish(run: dict[str, Any], models: ActorCritic) -> dict[str, Any]:
    """Put the best policy into `models`, and say how the run went."""
    put_back(models.policy_parameters(), run["kept"])
    return {key: run[key] for key in ("log", "best", "refused")} | {"stop": run["stop"] or "all iterations done"}


@torch.no_grad()
def put_back(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _copied(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def _set_learning_rates(optimizer: torch.optim.Optimizer, config: PPOConfig, iteration: int) -> None:
    left = 1 - (iteration - 1) / config.iterations if config.learning_rate_decay == "linear" else 1.0
    rates = (config.learning_rate, config.critic_learning_rate or config.learning_rate)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * left
