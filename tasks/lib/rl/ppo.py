"""One iteration of proximal policy optimisation of a language model, in the order of the papers.

1 roll out answers, 2 score them, 3 spread score and KL penalty over the tokens, 4 estimate advantages,
5 update policy and critic with clipped losses. InstructGPT (arXiv 2203.02155) after LMHP
(openai/lm-human-preferences), with the details of N+ (arXiv 2403.17031). Where those differ, `PPOConfig`
(tasks/lib/settings/ppo.py) has a key.

Shapes: N episodes, T answer columns, T+1 states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.lib.models.generation import sampled
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.models.passes import in_batches, in_passes, lengths_of
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.losses import (
    approx_kl,
    gae,
    ppo_policy_loss,
    ppo_value_loss,
    whiten,
)
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import Problem
from tasks.lib.training.distributed import add_gradients, by_first, combined, mine, spread

Answers = list[list[int]]
SAME = 1e-3  # |log ratio| of two passes over the same weights; float32 in other batches gives about 1e-5


@dataclass(frozen=True)
class Prompt:
    """A prompt's row id, for messages, its tokens, and its row, for rewards that look at it."""

    id: str
    tokens: list[int]
    row: Mapping[str, Any] = field(default_factory=dict)


Reward = Callable[[Sequence[Prompt], Answers], list[float]]


@dataclass(frozen=True)
class Environment:
    """What the policy shall learn, and how one sees it.

    `reward(prompts, answers)` gives a score per answer; of several processes each calls it with the same ones.
    `judge(answers)` sees an answer per validation prompt and gives at least `judge`, by which policies are compared,
    and `content` if `max_content_loss` is set. `generate(models, prompts, seed)`, if given, draws an answer to each
    prompt in place of the policy's own generation: another engine with the same weights.
    """

    prompts: Sequence[Prompt]
    validation: Sequence[Prompt]
    reward: Reward
    judge: Callable[[Answers], dict[str, float]]
    eos_id: int
    pad_id: int
    seed_of: Callable[..., int]
    generate: Callable[[ActorCritic, Answers, int], Answers] | None = None


@dataclass(frozen=True)
class Episodes:
    """One answer to each of N prompts, and what the models said before the iteration's first step."""

    iteration: int
    ids: list[str]
    prompts: Answers
    answers: Answers
    scores: Tensor  # (N,) of the reward
    logprobs: Tensor  # (N, T) of the policy that answered
    reference: Tensor  # (N, T)
    values: Tensor  # (N, T+1), 0 where is_state is False
    is_action: Tensor  # (N, T) True at answer tokens, the EOS included
    is_state: Tensor  # (N, T+1) True at states that have a value

    @property
    def kl(self) -> Tensor:
        """(N, T) sampled log pi - log reference, in nats, 0 outside of the answer."""
        return torch.where(self.is_action, self.logprobs - self.reference, 0)


def roll_out(
    models: ActorCritic, prompts: Answers, env: Environment, config: PPOConfig, seed: int
) -> tuple[Answers, list[list[float]] | None]:
    """1. One sampled answer per prompt, cut after its first EOS, and the log-probs of its tokens.

    Of several processes the first draws them all, or each its passes: the answers are those of one process.
    None in place of log-probs of another engine: the policy's own are close, and not the same.
    """
    if (generate := env.generate) is not None:
        return by_first(lambda: generate(models, prompts, seed)), None
    settings: dict[str, Any] = {
        "eos_id": env.eos_id,
        "pad_id": env.pad_id,
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "batch_size": config.batch_size,
    }

    def drawn(rows: list[int], seed: int) -> list[tuple[list[int], list[float]]]:
        return list(zip(*sampled(models.policy, [prompts[i] for i in rows], seed=seed, **settings), strict=True))

    if config.streams == "one":
        found = by_first(lambda: drawn(list(range(len(prompts))), seed))
    else:
        passes = in_batches(range(len(prompts)), [len(prompt) for prompt in prompts], config.batch_size)
        seeds = {rows[0]: seed + number for number, rows in enumerate(passes)}
        found = spread(passes, lambda rows: drawn(rows, seeds[rows[0]]))
    return [answer for answer, _ in found], [logprobs for _, logprobs in found]


def sequence_logprobs(model: Any, prompts: Answers, answers: Answers, config: PPOConfig) -> list[Tensor]:
    """Log-probs of every answer's tokens, a tensor (len(answer),) per row, at the temperature of the samples."""
    return spread(
        in_passes(range(len(prompts)), lengths_of(prompts, answers), config.batch_size),
        lambda rows: answer_logprobs(
            model,
            [prompts[i] for i in rows],
            [answers[i] for i in rows],
            batch_size=config.batch_size,
            temperature=config.temperature,
        ),
    )


def score(
    models: ActorCritic,
    chosen: Sequence[Prompt],
    answers: Answers,
    env: Environment,
    config: PPOConfig,
    iteration: int,
    drawn_at: list[list[float]] | None = None,
) -> Episodes:
    """2. The reward of each whole answer; log-probs of policy and reference; values of the critic.

    The policy's log-probs are those of the roll-out where these are safe: in float32 (`update` checks them against
    its own first pass). In 16 bits, or where None are given, they are computed anew.
    """
    prompts = [prompt.tokens for prompt in chosen]
    scores, ended = rewarded(chosen, answers, env, config, iteration)

    if drawn_at is None or models.policy.dtype != torch.float32:
        logprobs = _padded(sequence_logprobs(models.policy, prompts, answers, config))
    else:
        logprobs = _padded([torch.tensor(row) for row in drawn_at])
    with models.reference() as reference_model:
        reference = _padded(sequence_logprobs(reference_model, prompts, answers, config))
    is_action, is_state = masks([len(answer) for answer in answers], config.score_at)
    values = _padded(
        spread(
            in_passes(range(len(prompts)), lengths_of(prompts, answers), config.batch_size),
            lambda rows: models.values([prompts[i] for i in rows], [answers[i] for i in rows]).cpu().clone(),
        )
    )
    return Episodes(
        iteration=iteration,
        ids=[prompt.id for prompt in chosen],
        prompts=prompts,
        answers=answers,
        scores=final_scores(scores, ended, config),
        logprobs=logprobs,
        reference=reference,
        values=values.where(is_state, 0),
        is_action=is_action,
        is_state=is_state,
    )


def rewarded(
    chosen: Sequence[Prompt], answers: Answers, env: Environment, config: PPOConfig, iteration: int
) -> tuple[Tensor, Tensor]:
    """The reward (N,) of each answer, and which of them ended (N,). Problem for a reward that is not finite."""
    scores = torch.tensor(env.reward(chosen, answers), dtype=torch.float32)
    bad = [p.id for p, ok in zip(chosen, torch.isfinite(scores).tolist(), strict=True) if not ok]
    if bad:
        where = f"ppo: iteration {iteration}: the reward"
        raise Problem(f"{where} is not finite for the prompts {_named(bad)}; check models/reward")
    ended = torch.tensor([answer[-1] == env.eos_id for answer in answers])
    _check_answers(scores, ended, config, iteration)
    return scores, ended


def final_scores(scores: Tensor, ended: Tensor, config: PPOConfig) -> Tensor:
    """Scores (N,) after the rule for answers that did not end: replaced (N+), lowered (TRL) or kept."""
    if config.missing_eos == "replace":
        return scores.where(ended, config.missing_eos_value)
    return scores if config.missing_eos == "keep" else scores.where(ended, scores + config.missing_eos_value)


def masks(lengths: Sequence[int], score_at: str) -> tuple[Tensor, Tensor]:
    """is_action (N, T) and is_state (N, T+1) of answers of the given lengths (EOS counted).

    The classic off-by-one. With L tokens the last action is L-1, and the state after it is number L: N+ keeps
    its value (`padding_mask_p1 = index > last + 1`) and pays the score there. With `score_at: eos` it is the
    end, worth 0, and the score is paid to the EOS itself.
    """
    length = torch.tensor(lengths).unsqueeze(1)
    state = torch.arange(max(lengths) + 1).unsqueeze(0)
    return (state < length)[:, :-1], state < length + (score_at == "after_eos")


def token_rewards(episodes: Episodes, config: PPOConfig, beta: float) -> Tensor:
    """3. Rewards (N, T+1): -beta (log pi - log reference) at each token, and the score once, at the end."""
    rewards = torch.zeros_like(episodes.values)
    rewards[:, :-1] = -beta * episodes.kl
    last_state = episodes.is_state.sum(1) - 1
    rewards[torch.arange(len(rewards)), last_state] += episodes.scores
    return whiten(rewards, episodes.is_state, shift=False) if config.whiten_rewards else rewards


def estimate_advantages(rewards: Tensor, episodes: Episodes, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """4. Advantages (N, T) of the actions, whitened over all of them, and returns (N, T+1) of the states."""
    advantages, returns = gae(rewards, episodes.values, config.gamma, config.lam)
    advantages = advantages[:, :-1].where(episodes.is_action, 0)
    return whiten(advantages, episodes.is_action) if config.whiten_advantages else advantages, returns


def update(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    seed_of: Callable[..., int],
    config: PPOConfig,
) -> dict[str, float]:
    """5. Clipped updates: `epochs` passes of `minibatches` steps. Returns means of the last epoch's figures.

    No step is taken, and Problem raised, when loss or gradient is not finite, or when the very first pass
    does not find the log-probs of `score` again: then ratio is 1 and approximate KL 0, or something is wrong.
    """
    where = f"ppo: iteration {episodes.iteration}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    steps: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        order = torch.tensor(permutation(len(episodes.ids), seed_of("minibatches", episodes.iteration, epoch)))
        for rows in order.chunk(config.minibatches):
            figures = _accumulate(models, optimizer, episodes, advantages, returns, rows.tolist(), config)
            if not steps and not figures["largest_log_ratio"] < SAME:
                raise Problem(
                    f"{where}: before the first step the policy is not the one that was scored: |log ratio| "
                    f"{figures['largest_log_ratio']:.3g}, expected 0; its numbers are not repeatable"
                )
            add_gradients(parameters)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf))
            if not math.isfinite(figures["loss"] + norm):
                raise Problem(
                    f"{where}: the loss is {figures['loss']:.3g}, its gradient's norm {norm:.3g} on the "
                    f"prompts {_named([episodes.ids[i] for i in rows])}; no step was taken; "
                    "lower ppo.learning_rate"
                )
            optimizer.step()
            steps.append(figures | {"grad_norm": norm})
    last = steps[-min(config.minibatches, len(steps)) :]
    shown = ("policy_loss", "value_loss", "approx_kl", "clip_share", "grad_norm")
    return {key: sum(step[key] for step in last) / len(last) for key in shown}


def _accumulate(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    rows: list[int],
    config: PPOConfig,
) -> dict[str, float]:
    """The gradient of a minibatch, in forward passes of `batch_size` rows. Means are over the minibatch.

    Of several processes each takes its passes: gradients are its share of the sum, figures are those of all.
    """
    optimizer.zero_grad(set_to_none=True)
    actions, states = episodes.is_action[rows].sum(), episodes.is_state[rows].sum()
    shown = ("loss", "policy_loss", "value_loss", "approx_kl", "clip_share", "largest_log_ratio")
    total = dict.fromkeys(shown, 0.0)
    lengths = lengths_of(episodes.prompts, episodes.answers)
    for some in mine(in_passes(rows, lengths, config.batch_size)):
        prompts, answers = [episodes.prompts[i] for i in some], [episodes.answers[i] for i in some]
        logprobs, values = models(prompts, answers, config.temperature)
        width, where = logprobs.shape[1], logprobs.device
        old, is_action, advantage = (
            x[some, :width].to(where) for x in (episodes.logprobs, episodes.is_action, advantages)
        )
        old_values, is_state, target = (
            x[some, : width + 1].to(where) for x in (episodes.values, episodes.is_state, returns)
        )
        policy_loss, clip_share = ppo_policy_loss(logprobs, old, advantage, is_action, config.clip_ratio)
        value_loss = ppo_value_loss(values, old_values, target, is_state, config.clip_value)
        of_actions, of_states = (is_action.sum() / actions).item(), (is_state.sum() / states).item()
        loss = of_actions * policy_loss + config.value_weight * of_states * value_loss
        loss.backward()
        with torch.no_grad():
            ratio = (logprobs - old).where(is_action, 0).abs().max().item()
            total["largest_log_ratio"] = max(total["largest_log_ratio"], ratio)
            total["approx_kl"] += of_actions * approx_kl(logprobs, old, is_action).item()
        total["loss"] += loss.item()
        total["policy_loss"] += of_actions * policy_loss.item()
        total["value_loss"] += of_states * value_loss.item()
        total["clip_share"] += of_actions * clip_share.item()
    return combined(total, largest=["largest_log_ratio"])


def _check_answers(scores: Tensor, ended: Tensor, config: PPOConfig, iteration: int) -> None:
    """Say when there is nothing to learn from; a Problem if the first policy never ends an answer."""
    if not ended.any():
        what = f"ppo: iteration {iteration}: none of {len(ended)} answers ended"
        if iteration == 1 and config.missing_eos == "replace":
            limit = config.max_new_tokens
            raise Problem(f"{what} within {limit} tokens; raise ppo.max_new_tokens or train sft longer")
        print(f"{what} (warning)", flush=True)
    if len(scores) > 1 and bool((scores == scores[0]).all()):
        same = f"ppo: iteration {iteration}: every answer got the reward {scores[0]:.4g}"
        print(f"{same}; only the KL penalty is learned from (warning)", flush=True)


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def permutation(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
