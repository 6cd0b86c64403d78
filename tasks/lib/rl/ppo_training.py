"""A run of PPO: iterations until the judge's score stops improving; the best policy kept; resumable at any point.

A small reward model is soon exploited: its reward rises while the true objective falls (arXiv 2210.10760). So
a judge that is not the training reward looks at held-out prompts, and a KL budget ends the run.
Every random draw has a seed made of the iteration and the purpose, so an iteration is a function of the weights
before it: a resumed run repeats a lost iteration exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.losses import adaptive_beta
from tasks.lib.rl.ppo import (
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

Row = dict[str, float]  # the figures of an iteration


@dataclass
class Run:
    """How far a run has come, and the best policy so far. A checkpoint holds it, `kept` as tensors."""

    iteration: int  # the last that is done; 0 is the policy at the start
    beta: float  # KL coefficient of the next iteration
    log: list[Row]  # a row per iteration, row 0 of the policy at the start
    best: int = 0  # the iteration whose policy is kept
    stale: int = 0  # evaluations since then
    stop: str = ""  # why the run ends
    refused: list[int] = field(default_factory=list)  # iterations that only their loss of content kept from being best
    kept: dict[str, Tensor] = field(default_factory=dict)  # what of the best policy learns, on the CPU

    def state(self) -> dict[str, Any]:
        """All but the tensors, as JSON takes it."""
        return {name: value for name, value in vars(self).items() if name != "kept"}


def train(
    models: ActorCritic,
    env: Environment,
    config: PPOConfig,
    checkpoint: Checkpoint,
    progress: Callable[..., None] = lambda *_, **__: None,
) -> Run:
    """Train, and leave the best policy in `models`.

    The best is the one with the best judge's score among those evaluated within the KL budget (and the
    content loss); the starting policy, iteration 0, is one of them. Raises Problem, before the step is taken, when a
    number is not finite or when no answer ends.
    """
    optimizer = torch.optim.Adam(
        [{"params": models.policy_parameters().values()}, {"params": models.critic_parameters().values()}],
        eps=config.adam_eps,
    )
    run = _resumed(models, optimizer, checkpoint) or begin(models, env, config)
    for iteration in range(run.iteration + 1, config.iterations + 1):
        if run.stop:
            break
        _set_learning_rates(optimizer, config, iteration)
        row = iterate(models, optimizer, env, config, iteration, run.beta)
        if config.beta_target:
            run.beta = adaptive_beta(run.beta, row["kl"], config.beta_target, config.beta_horizon, config.episodes)
        record(run, row, iteration, models, env, config)
        if iteration % config.checkpoint_every == 0 or run.stop:
            _save(run, models, optimizer, checkpoint)
        progress(iteration, config.iterations, **progress_figures(row))
    return finish(run, models)


def iterate(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    env: Environment,
    config: PPOConfig,
    iteration: int,
    beta: float,
) -> Row:
    """The five steps of one iteration, and its figures."""
    prompts = next_prompts(env, config.episodes, iteration)
    batch = roll_out(models, prompts, env, config, env.seed_of("roll out", iteration))
    episodes = score(models, batch, env, config, iteration)
    rewards = token_rewards(episodes, config, beta)
    advantages, returns = estimate_advantages(rewards, episodes, config)
    figures = update(models, optimizer, episodes, advantages, returns, env.seed_of, config)

    row = {
        "iteration": iteration,
        "reward": float(episodes.scores.mean()),
        "kl": float(episodes.kl.sum(1).mean()),
        "beta": beta,
    }
    row |= figures
    row["ended"] = sum(answer[-1] == env.eos_id for answer in batch.answers) / len(batch)
    row["answer_tokens"] = sum(len(answer) for answer in batch.answers) / len(batch)
    return row


def next_prompts(env: Environment, count: int, iteration: int) -> list[Prompt]:
    """The prompts of `next_prompt_numbers`."""
    return [env.prompts[number] for number in next_prompt_numbers(env, count, iteration)]


def next_prompt_numbers(env: Environment, count: int, iteration: int) -> list[int]:
    """The next `count` places in an endless stream of prompts, which is shuffled again in each epoch."""
    orders: dict[int, list[int]] = {}  # of each epoch
    numbers = []
    for place in range((iteration - 1) * count, iteration * count):
        epoch, position = divmod(place, len(env.prompts))
        if epoch not in orders:
            orders[epoch] = permutation(len(env.prompts), env.seed_of("prompts", epoch))
        numbers.append(orders[epoch][position])
    return numbers


def begin(models: ActorCritic, env: Environment, config: PPOConfig) -> Run:
    """A run whose best policy is the one at the start."""
    row: Row = {"iteration": 0, "beta": config.beta}
    row |= evaluate(models, env, config)
    return Run(iteration=0, beta=config.beta, log=[row], kept=_copied(models.policy_parameters()))


def record(run: Run, row: Row, iteration: int, models: ActorCritic, env: Environment, config: PPOConfig) -> None:
    """Put an iteration's row into the log. If an evaluation is due, its figures join the row, and it decides."""
    run.log.append(row)
    run.iteration = iteration
    if iteration % config.evaluate_every == 0 or iteration == config.iterations:
        row |= evaluate(models, env, config)
        keep_or_stop(run, row, models, config)


def evaluate(models: ActorCritic, env: Environment, config: PPOConfig) -> Row:
    """The judge's figures on sampled answers to the validation prompts, and their KL from the reference.

    The KL is in nats per sequence, at the sampling temperature. The seed is
    always the same: so is, in part, the noise of sampling before and after.
    """
    batch = roll_out(models, env.validation, env, config, env.seed_of("validation"))
    logprobs = sequence_logprobs(models.policy, batch, config.temperature)
    with models.reference() as reference_model:
        reference_logprobs = sequence_logprobs(reference_model, batch, config.temperature)
    pairs = zip(logprobs, reference_logprobs, strict=True)
    kl = sum(float((of_policy - of_reference).sum()) for of_policy, of_reference in pairs) / len(batch)
    figures = env.judge(batch) | {"kl": kl}
    return {f"validation_{key}": value for key, value in figures.items()}


def keep_or_stop(run: Run, row: Row, models: ActorCritic, config: PPOConfig) -> None:
    """By the evaluation in the latest row: keep the policy if it is the best within bounds; decide whether to stop."""
    start, best = run.log[0], run.log[run.best]
    scores_higher = row["validation_judge"] > best["validation_judge"]
    within_budget = row["validation_kl"] <= config.kl_budget
    keeps_content = True
    if config.max_content_loss is not None:
        keeps_content = row["validation_content"] >= start["validation_content"] - config.max_content_loss

    if scores_higher and within_budget and keeps_content:
        run.best, run.stale, run.kept = run.iteration, 0, _copied(models.policy_parameters())
    else:
        run.stale += 1
        if scores_higher and within_budget:
            run.refused.append(run.iteration)  # the content alone decided
    if not within_budget:
        run.stop = f"KL above the budget at iteration {run.iteration}"
    elif run.stale >= config.patience:
        run.stop = f"no gain in {config.patience} evaluations at iteration {run.iteration}"


def progress_figures(row: Row) -> Row:
    """What the progress line shows of an iteration."""
    return {key: row[key] for key in ("reward", "kl", "validation_judge") if key in row}


def finish(run: Run, models: ActorCritic) -> Run:
    """Put the best policy into `models`, and say why the run ended."""
    put_back(models.policy_parameters(), run.kept)
    run.stop = run.stop or "all iterations done"
    return run


def _save(run: Run, models: ActorCritic, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    if not is_first():
        return
    current = models.policy_parameters() | models.critic_parameters()
    tensors = {f"current.{name}": parameter.detach() for name, parameter in current.items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in run.kept.items()}
    tensors |= optimizer_tensors(optimizer)
    checkpoint.save(run.iteration, tensors, run.state())


def _resumed(models: ActorCritic, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> Run | None:
    """The run of the checkpoint, its weights put into `models` and its state into the optimizer; None without one."""
    with first_before_others():  # the first may discard it
        saved = checkpoint.load()
    if saved is None:
        return None
    iteration, tensors, state = saved
    print(f"ppo: continuing after iteration {iteration}", flush=True)
    put_back(models.policy_parameters() | models.critic_parameters(), _part(tensors, "current."))
    restore_optimizer(optimizer, tensors)
    return Run(**state, kept=_part(tensors, "kept."))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have the prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def put_back(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Give the parameters the values of the tensors of the same names."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _copied(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def _set_learning_rates(optimizer: torch.optim.Optimizer, config: PPOConfig, iteration: int) -> None:
    remaining = 1.0
    if config.learning_rate_decay == "linear":
        remaining = 1 - (iteration - 1) / config.iterations
    policy_group, critic_group = optimizer.param_groups
    policy_group["lr"] = config.learning_rate * remaining
    critic_group["lr"] = (config.critic_learning_rate or config.learning_rate) * remaining
