"""One iteration of proximal policy optimization of a language model, in the order of the papers.

1 `roll_out`             an answer to each prompt
2 `score`                a score for each whole answer (`apply_missing_eos`: what one without EOS gets instead);
                         log-probs of policy and reference, values of the critic
3 `token_rewards`        the KL penalty at each token, the score once (`score_at` says at which state)
4 `estimate_advantages`  generalised advantage estimation
5 `update`               steps of policy and critic along clipped losses

InstructGPT (arXiv 2203.02155) after LMHP (openai/lm-human-preferences), with the details of N+ (arXiv 2403.17031).
Where those differ, `PPOConfig` (tasks/lib/settings/ppo.py) has a key.

Shapes: N episodes, T answer columns, T+1 states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tasks.lib.models.batches import batches_by_length
from tasks.lib.models.generation import sampled
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.models.pass_size import training_tokens
from tasks.lib.rl.actor_critic import ActorCritic
from tasks.lib.rl.batch import Batch, Pass, Prompt
from tasks.lib.rl.environment import Environment
from tasks.lib.rl.losses import approx_kl, gae, ppo_policy_loss, ppo_value_loss, whiten
from tasks.lib.rl.sanity_checks import (
    check_answers_end,
    check_first_pass,
    check_scores,
    check_step,
    warn_of_equal_scores,
)
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.training.distributed import add_gradients, by_first, combined, share_of_process, spread


@dataclass(frozen=True)
class Episodes:
    """A batch of N answers, and what the models gave for it before the iteration's first step."""

    iteration: int
    batch: Batch
    scores: Tensor  # (N,) of the reward, after the rule for answers without EOS
    logprobs: Tensor  # (N, T) of the policy that answered
    reference_logprobs: Tensor  # (N, T)
    values: Tensor  # (N, T+1), 0 where is_state is False
    is_action: Tensor  # (N, T) True at answer tokens, the EOS included
    is_state: Tensor  # (N, T+1) True at states that have a value

    @property
    def kl(self) -> Tensor:
        """(N, T) sampled log pi - log reference, in nats, 0 outside of the answer."""
        return torch.where(self.is_action, self.logprobs - self.reference_logprobs, 0)


def roll_out(models: ActorCritic, prompts: Sequence[Prompt], env: Environment, config: PPOConfig, seed: int) -> Batch:
    """1. One sampled answer per prompt, cut after its first EOS, with the log-probs of its tokens.

    With `streams: one` a single stream of random numbers runs through all rows, so the first process draws every
    answer. With `per_pass` each pass has a stream of its own, and the processes share the passes. Neither way depends
    on the number of processes. Answers of another engine come without log-probs: the engine's are close to the
    policy's, and not the same.
    """
    tokens = [prompt.tokens for prompt in prompts]
    limit = training_tokens(models.policy, logits=True)
    generate = env.generate
    if generate is not None:
        return Batch(prompts, by_first(lambda: generate(models, tokens, seed)), config.batch_size, tokens=limit)

    def draw(rows: Sequence[int], stream: int) -> list[tuple[list[int], list[float]]]:
        answers, logprobs = sampled(
            models.policy,
            [tokens[row] for row in rows],
            eos_id=env.eos_id,
            pad_id=env.pad_id,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            batch_size=config.batch_size,
            seed=stream,
        )
        return list(zip(answers, logprobs, strict=True))

    if config.streams == "one":
        drawn = by_first(lambda: draw(range(len(prompts)), seed))
    else:
        passes = batches_by_length([len(ids) for ids in tokens], config.batch_size)
        stream_of = {rows[0]: seed + number for number, rows in enumerate(passes)}  # by the first row of a pass
        drawn = spread(passes, lambda rows: draw(rows, stream_of[rows[0]]))
    answers = [answer for answer, _ in drawn]
    return Batch(prompts, answers, config.batch_size, [logprobs for _, logprobs in drawn], limit)


def score(models: ActorCritic, batch: Batch, env: Environment, config: PPOConfig, iteration: int) -> Episodes:
    """2. The score of each whole answer; log-probs of policy and reference; values of the critic.

    The policy's log-probs are those of the rollout where these are safe: in float32 (`update` checks them against
    its own first pass). In 16 bits, or where another engine sampled the answers, the policy computes them.
    """
    scores = score_answers(batch, env, config, iteration)
    if batch.sampled_logprobs is None or models.policy.dtype != torch.float32:
        logprobs = sequence_logprobs(models.policy, batch, config.temperature)
    else:
        logprobs = [torch.tensor(row) for row in batch.sampled_logprobs]
    with models.reference() as reference_model:
        reference_logprobs = sequence_logprobs(reference_model, batch, config.temperature)
    is_action, is_state = masks([len(answer) for answer in batch.answers], config.score_at)
    values = batch.map(lambda part: models.values(part.prompts, part.answers).cpu())
    return Episodes(
        iteration=iteration,
        batch=batch,
        scores=scores,
        logprobs=_padded(logprobs),
        reference_logprobs=_padded(reference_logprobs),
        values=_padded(values).where(is_state, 0),
        is_action=is_action,
        is_state=is_state,
    )


def score_answers(batch: Batch, env: Environment, config: PPOConfig, iteration: int) -> Tensor:
    """The scores (N,) that the reward gives, after the rule for answers without EOS.

    Problem for a score that is not finite, and when the first policy never ends an answer.
    """
    scores = torch.tensor(env.reward(batch), dtype=torch.float32)
    has_eos = torch.tensor([answer[-1] == env.eos_id for answer in batch.answers])
    check_scores(scores, batch.ids, iteration)
    check_answers_end(has_eos, iteration, config.max_new_tokens, config.missing_eos)
    warn_of_equal_scores(scores, iteration)
    return apply_missing_eos(scores, has_eos, config)


def apply_missing_eos(scores: Tensor, has_eos: Tensor, config: PPOConfig) -> Tensor:
    """Scores (N,) after the rule for answers without EOS: replaced by a value (N+), the value added (TRL), or kept."""
    if config.missing_eos == "replace":
        return scores.where(has_eos, config.missing_eos_value)
    if config.missing_eos == "penalty":
        return scores.where(has_eos, scores + config.missing_eos_value)
    return scores


def sequence_logprobs(model: Any, batch: Batch, temperature: float) -> list[Tensor]:
    """Log-probs of every answer's tokens at a temperature, a tensor (len(answer),) per row."""

    def of_pass(part: Pass) -> list[Tensor]:
        return answer_logprobs(model, part.prompts, part.answers, batch_size=batch.batch_size, temperature=temperature)

    return batch.map(of_pass)


def masks(lengths: Sequence[int], score_at: str) -> tuple[Tensor, Tensor]:
    """is_action (N, T) and is_state (N, T+1) of answers of the given lengths (EOS counted).

    The classic off-by-one. With L tokens the last action is L-1, and the state after it is number L: N+ keeps
    its value (`padding_mask_p1 = index > last + 1`) and pays the score there. With `score_at: eos` it is the
    end, worth 0, and the score is paid to the EOS itself.
    """
    length = torch.tensor(lengths).unsqueeze(1)  # (N, 1)
    state = torch.arange(max(lengths) + 1).unsqueeze(0)  # (1, T+1)
    last_state = length if score_at == "after_eos" else length - 1
    return (state < length)[:, :-1], state <= last_state


def token_rewards(episodes: Episodes, config: PPOConfig, beta: float) -> Tensor:
    """3. Rewards (N, T+1): the KL penalty -beta (log pi - log reference) at each token, and the score once, at the last
    state: the one after the EOS, or with `score_at: eos` the one in which the EOS is the action."""
    kl_penalty = -beta * episodes.kl  # (N, T)
    rewards = torch.zeros_like(episodes.values)
    rewards[:, :-1] = kl_penalty
    last_state = episodes.is_state.sum(1) - 1  # (N,)
    rewards[torch.arange(len(rewards)), last_state] += episodes.scores
    if config.whiten_rewards:
        return whiten(rewards, episodes.is_state, shift=False)
    return rewards


def estimate_advantages(rewards: Tensor, episodes: Episodes, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """4. Advantages (N, T) of the actions, with `whiten_advantages` whitened over all of them; returns (N, T+1)."""
    advantages, returns = gae(rewards, episodes.values, config.gamma, config.lam)
    advantages = advantages[:, :-1].where(episodes.is_action, 0)
    if config.whiten_advantages:
        advantages = whiten(advantages, episodes.is_action)
    return advantages, returns


def update(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    seed_of: Callable[..., int],
    config: PPOConfig,
) -> dict[str, float]:
    """5. Clipped updates: `epochs` times `minibatches` steps. Returns means of the last epoch's figures.

    No step is taken, and Problem raised, when loss or gradient is not finite, or when the very first pass
    does not find the log-probs of `score` again: then ratio is 1 and approximate KL 0, or something is wrong.
    """
    parameters: list[Tensor] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    ids = episodes.batch.ids
    steps: list[dict[str, float]] = []  # of the latest epoch
    for epoch in range(config.epochs):
        steps = []
        order = permutation(len(episodes.batch), seed_of("minibatches", episodes.iteration, epoch))
        for minibatch in torch.tensor(order).tensor_split(config.minibatches):
            rows = minibatch.tolist()
            figures = minibatch_gradient(models, optimizer, episodes, advantages, returns, rows, config)
            if epoch == 0 and not steps:
                check_first_pass(figures, episodes.iteration)
            add_gradients(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
            figures["grad_norm"] = float(norm)
            check_step(figures, [ids[row] for row in rows], episodes.iteration)
            optimizer.step()
            steps.append(figures)

    means = {}
    for key in ("policy_loss", "value_loss", "approx_kl", "clip_share", "grad_norm"):
        means[key] = sum(step[key] for step in steps) / len(steps)
    return means


def minibatch_gradient(
    models: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Episodes,
    advantages: Tensor,
    returns: Tensor,
    minibatch: list[int],
    config: PPOConfig,
) -> dict[str, float]:
    """Set the parameters' gradients to those of a minibatch, added up pass by pass. Figures are means over it.

    With several processes each takes its passes: its gradients are a share of the sum, the figures are those of all.
    """
    optimizer.zero_grad(set_to_none=True)
    shown = ("loss", "policy_loss", "value_loss", "approx_kl", "clip_share", "largest_log_ratio")
    total = dict.fromkeys(shown, 0.0)
    actions, states = episodes.is_action[minibatch].sum(), episodes.is_state[minibatch].sum()
    for part in share_of_process(episodes.batch.passes(minibatch)):
        # B: the pass's rows, T: its longest answer
        logprobs, values = models(part.prompts, part.answers, config.temperature)  # (B, T), (B, T+1)
        rows, width, device = part.rows, logprobs.shape[1], logprobs.device
        is_action = episodes.is_action[rows, :width].to(device)  # (B, T)
        old_logprobs = episodes.logprobs[rows, :width].to(device)  # (B, T)
        advantage = advantages[rows, :width].to(device)  # (B, T)
        is_state = episodes.is_state[rows, : width + 1].to(device)  # (B, T+1)
        old_values = episodes.values[rows, : width + 1].to(device)  # (B, T+1)
        target = returns[rows, : width + 1].to(device)  # (B, T+1)

        policy_loss, clip_share = ppo_policy_loss(logprobs, old_logprobs, advantage, is_action, config.clip_ratio)
        value_loss = ppo_value_loss(values, old_values, target, is_state, config.clip_value)
        # both are means over the pass; these shares make their sum the mean over the minibatch
        action_share, state_share = (is_action.sum() / actions).item(), (is_state.sum() / states).item()
        loss = action_share * policy_loss + config.value_weight * state_share * value_loss
        loss.backward()

        with torch.no_grad():
            log_ratio = (logprobs - old_logprobs).where(is_action, 0).abs().max().item()
            kl = approx_kl(logprobs, old_logprobs, is_action).item()
        total["largest_log_ratio"] = max(total["largest_log_ratio"], log_ratio)
        total["approx_kl"] += action_share * kl
        total["loss"] += loss.item()
        total["policy_loss"] += action_share * policy_loss.item()
        total["value_loss"] += state_share * value_loss.item()
        total["clip_share"] += action_share * clip_share.item()
    return combined(total, largest=["largest_log_ratio"])


def _padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def permutation(count: int, seed: int) -> list[int]:
    """The numbers 0 to count - 1 in an order that depends on the seed alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
