"""The training loop of the reward model: all answers and all annotators of a prompt in one step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.annotation.agreement import reliability, verdicts
from tasks.lib.reward.ensemble import bootstrap_counts
from tasks.lib.reward.ranking_loss import pairs, ranking_loss
from tasks.lib.reward.reward_attributes import Rated, attribute_loss, rated_batches
from tasks.lib.reward.reward_model import Group, batch_ranks, heads_of, outputs
from tasks.lib.reward.shared_prompt import refuse_unless_equal, shared_outputs
from tasks.lib.settings.reward import Training
from tasks.lib.stage import Problem, asked_to_stop
from tasks.lib.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from tasks.lib.training.muon import Muon

History = list[dict[str, float]]


def train(
    model: Any,
    groups: Sequence[Group],
    how: Training,
    *,
    rated: Sequence[Rated] = (),
    seed: int,
    checkpoint: Checkpoint,
    progress: Callable[..., None],
) -> History:
    """Train in place on tokenized groups, and on rated answers beside them; returns loss and pair accuracy per step.

    Resumed after a kill it ends in the same bytes: the order of the prompts is a function of the seed, and
    the model has no dropout. SIGTERM and Ctrl-C save before they end the run. Problem when the loss is not
    finite, before the step is taken.
    """
    batches = _batches(groups, how, seed)
    beside = rated_batches(model, rated, how.epochs, len(batches), seed)
    weight_of = reliability_weights(groups) if how.annotator_weights == "reliability" else None
    if how.share_prompt:
        refuse_unless_equal(model, groups[0])
    Optimizer: Any = Muon if how.optimizer == "muon" else torch.optim.AdamW
    trained = model if how.optimizer == "muon" else [p for p in model.parameters() if p.requires_grad]
    optimizer = Optimizer(trained, lr=how.learning_rate, weight_decay=how.weight_decay)
    history: History = []
    if saved := checkpoint.load():
        _, tensors, history = saved
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        restore_optimizer(optimizer, tensors)
        print(f"reward: going on after step {len(history)} of {len(batches)}", flush=True)
    with asked_to_stop() as signals:
        for step, batch in enumerate(batches[len(history) :], len(history) + 1):
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * schedule(step, len(batches), how.warmup_share)
            history.append({"step": step, **_step(model, optimizer, batch, beside[step - 1], how, weight_of, seed)})
            progress(step, len(batches), loss=history[-1]["loss"], accuracy=history[-1]["accuracy"])
            if signals or (step % how.checkpoint_every == 0 and step < len(batches)):
                weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
                checkpoint.save(step, {**weights, **optimizer_tensors(optimizer)}, history)
            if signals:
                print(f"reward: stopped after step {step}; run it again to go on", flush=True)
                raise SystemExit(128 + signals[0])
    return history


def reliability_weights(groups: Sequence[Group]) -> dict[str, float]:
    """annotator -> 2p - 1 for the probability p of being right (agreement.reliability): a coin counts nothing.

    Problem when nobody is better than a coin.
    """
    rankings = (
        {
            "prompt_key": group.prompt_key,
            "annotator": annotator,
            "answers": [answer for answer, rank in zip(group.answers, ranks, strict=True) if rank >= 0],
            "ranks": [rank for rank in ranks if rank >= 0],
        }
        for group in groups
        for annotator, ranks in zip(group.annotators, group.ranks, strict=True)
    )
    weights = {name: max(0.0, 2 * rate - 1) for name, rate in reliability(verdicts(rankings)).items()}
    if not any(weights.values()):
        raise Problem("reward.training.annotator_weights: no annotator is better than a coin; use equal")
    print("reward: annotators count", ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
    return weights


def _step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: list[Group],
    beside: list[Rated],
    how: Training,
    weight_of: dict[str, float] | None,
    seed: int,
) -> dict[str, float]:
    """One optimiser step; each answer is scored once, whatever the number of annotators, pairs and heads."""
    places, ranks = (x.to(model.device) for x in batch_ranks(batch))
    if how.share_prompt:
        found = shared_outputs(model, batch)
    else:
        found = outputs(model, [ids for group in batch for ids in group.sequences])
    by_head = heads_of(model, found)[places]  # (R, K, heads)
    loss = _loss(by_head, ranks, batch, how, weight_of, seed)
    if beside:
        loss = loss + how.attribute_weight * attribute_loss(model, beside)
    if not torch.isfinite(loss):
        rows = ", ".join(row for group in batch for row in group.rows[:1])[:200]
        raise Problem(
            f"reward: the loss is {loss.item()}; no step was taken. Lower "
            f"reward.training.learning_rate, or look at the rankings {rows}"
        )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), how.max_grad_norm)
    optimizer.step()
    row, better, worse, is_tie = pairs(ranks)
    scores = by_head.detach().mean(-1)
    apart = (scores[row, better] - scores[row, worse])[~is_tie]
    accuracy = (apart > 0).double().mean().item() if len(apart) else 0.5
    return {"loss": loss.item(), "accuracy": accuracy}


def _loss(
    by_head: Tensor,
    ranks: Tensor,
    batch: list[Group],
    how: Training,
    weight_of: dict[str, float] | None,
    seed: int,
) -> Tensor:
    """Mean over the heads of the ranking loss, for each on its own sample of the prompts; by_head (R, K, heads)."""
    heads, margins, annotator_weights = by_head.shape[-1], None, None
    if how.strength_margin:
        strengths = [strength for group in batch for strength in group.strengths]
        margins = by_head.new_tensor(strengths) * how.strength_margin
    if weight_of is not None:  # 1e-6: a batch of annotators without weight is no division by 0
        who = [name for group in batch for name in group.annotators]
        annotator_weights = by_head.new_tensor([weight_of.get(name, 0.0) + 1e-6 for name in who])
    samples = [bootstrap_counts(group.prompt_key, heads, seed) for group in batch for _ in group.ranks]
    losses = []
    for scores, counts in zip(by_head.unbind(-1), by_head.new_tensor(samples).T, strict=True):
        weights = annotator_weights
        if heads > 1:
            weights = (counts if weights is None else weights * counts) + 1e-6
        loss = ranking_loss(
            scores,
            ranks,
            ties=how.ties,
            tie_parameter=how.tie_parameter,
            centring=how.centring,
            margins=margins,
            weights=weights,
        )
        losses.append(loss * counts.mean())  # a batch that a head hardly drew moves it little
    return torch.stack(losses).mean()


def _batches(groups: Sequence[Group], how: Training, seed: int) -> list[list[Group]]:
    """All epochs, each in an order of its own."""
    batches = []
    for epoch in range(how.epochs):
        order = list(groups)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        size = how.prompts_per_step
        batches += [order[start : start + size] for start in range(0, len(order), size)]
    return batches


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """Factor on the learning rate at step 1 to `steps`: a linear warm-up to 1, then a cosine towards 0."""
    warmup = max(1, round(steps * warmup_share))
    if step <= warmup:
        return step / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1))) / 2
