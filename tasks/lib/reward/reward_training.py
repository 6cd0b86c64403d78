"""How the reward model is trained: all answers and all annotators of a prompt in one step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.reward.annotator_weights import reliability_weights
from tasks.lib.reward.ensemble import bootstrap_counts
from tasks.lib.reward.groups import Group, all_sequences, batch_ranks
from tasks.lib.reward.ranking_loss import pairs, ranking_loss
from tasks.lib.reward.reward_attributes import Rated, attribute_loss, rated_batches
from tasks.lib.reward.reward_model import heads_of, outputs
from tasks.lib.reward.shared_prompt import refuse_unless_equal, shared_outputs
from tasks.lib.settings.reward import Training
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.loop import train_steps, warmup_then_cosine
from tasks.lib.training.muon import Muon

History = list[dict[str, float]]
LEAST_WEIGHT = 1e-6  # added to the weight of a ranking: a batch in which none counts is no division by 0


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
    """Train in place on tokenized groups, and on rated answers too; returns loss and pair accuracy per step.

    Resumed and stopped as `train_steps` says: the order of the prompts is a function of the seed, and the model has no
    dropout.
    """
    batches = _batches(groups, how, seed)
    rated_of_step = rated_batches(model, rated, how.epochs, len(batches), seed)
    weight_of = reliability_weights(groups) if how.annotator_weights == "reliability" else None
    if how.share_prompt:
        refuse_unless_equal(model, groups[0])
    warmup = max(1, round(len(batches) * how.warmup_share))

    def rate_at(step: int) -> float:
        return how.learning_rate * warmup_then_cosine(step, len(batches), warmup, floor=0.0, falls_at_once=True)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        return _loss_and_accuracy(model, batches[step], rated_of_step[step], how, weight_of, seed)

    def advice(step: int) -> str:
        first_of_each = ", ".join(group.rows[0] for group in batches[step] if group.rows)
        return f"lower reward.training.learning_rate, or look at the rankings {first_of_each[:200]}"

    Optimizer: Any = Muon if how.optimizer == "muon" else torch.optim.AdamW
    trained = model if how.optimizer == "muon" else [p for p in model.parameters() if p.requires_grad]
    return train_steps(
        "reward",
        model,
        Optimizer(trained, lr=how.learning_rate, weight_decay=how.weight_decay),
        loss_of,
        steps=len(batches),
        rate_at=rate_at,
        max_grad_norm=how.max_grad_norm,
        checkpoint=checkpoint,
        save_every=how.checkpoint_every,
        progress=progress,
        advice=advice,
    )


def _loss_and_accuracy(
    model: Any,
    batch: list[Group],
    rated: list[Rated],
    how: Training,
    weight_of: dict[str, float] | None,
    seed: int,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a step, and the accuracy of the mean reward on the pairs that are no ties (0.5 without such a pair).

    Each answer is scored once, whatever the number of annotators, pairs and heads.
    """
    places, ranks = batch_ranks(batch)  # (R, K) each, of the R rankings of the batch
    places, ranks = places.to(model.device), ranks.to(model.device)
    scored = shared_outputs(model, batch) if how.share_prompt else outputs(model, all_sequences(batch))  # (answers, N)
    by_head = heads_of(model, scored)[places]  # (R, K, heads)
    loss = _loss(by_head, ranks, batch, how, weight_of, seed)
    if rated:
        loss = loss + how.attribute_weight * attribute_loss(model, rated)
    row, better, worse, is_tie = pairs(ranks)
    scores = by_head.detach().mean(-1)  # (R, K)
    margins = (scores[row, better] - scores[row, worse])[~is_tie]
    accuracy = (margins > 0).double().mean().item() if len(margins) else 0.5
    return loss, {"accuracy": accuracy}


def _loss(
    by_head: Tensor,
    ranks: Tensor,
    batch: list[Group],
    how: Training,
    weight_of: dict[str, float] | None,
    seed: int,
) -> Tensor:
    """Mean over the heads of the ranking loss, of each on its own bootstrap sample of the prompts; a scalar.

    by_head (R, K, heads): raw rewards of the answers of all R rankings of the batch; ranks (R, K). `weight_of`: how
    much an annotator's rankings count; None: all the same.
    """
    heads = by_head.shape[-1]
    margins = annotator_weights = None  # (R,)
    if how.strength_margin:
        margins = by_head.new_tensor(_strengths(batch)) * how.strength_margin
    if weight_of is not None:
        annotator_weights = by_head.new_tensor(_weights(batch, weight_of))
    counts = by_head.new_tensor(_bootstrap_counts(batch, heads, seed))  # (R, heads)
    losses = []
    for scores, counts_of_head in zip(by_head.unbind(-1), counts.unbind(-1), strict=True):
        weights = annotator_weights
        if heads > 1:
            weights = (counts_of_head if weights is None else weights * counts_of_head) + LEAST_WEIGHT
        loss = ranking_loss(
            scores,
            ranks,
            ties=how.ties,
            tie_parameter=how.tie_parameter,
            centring=how.centring,
            margins=margins,
            weights=weights,
        )
        losses.append(loss * counts_of_head.mean())  # a batch that a head hardly drew moves it little
    return torch.stack(losses).mean()


def _strengths(batch: list[Group]) -> list[float]:
    """How clear the preference of every ranking is (R)."""
    strengths: list[float] = []
    for group in batch:
        strengths += group.strengths
    return strengths


def _weights(batch: list[Group], weight_of: dict[str, float]) -> list[float]:
    """How much every ranking counts by its annotator (R)."""
    weights = []
    for group in batch:
        weights += [weight_of.get(annotator, 0.0) + LEAST_WEIGHT for annotator in group.annotators]
    return weights


def _bootstrap_counts(batch: list[Group], heads: int, seed: int) -> list[list[int]]:
    """How often every ranking counts for each head, by its prompt (R, heads)."""
    counts = []
    for group in batch:
        counts += [bootstrap_counts(group.prompt_key, heads, seed)] * len(group.ranks)
    return counts


def _batches(groups: Sequence[Group], how: Training, seed: int) -> list[list[Group]]:
    """All epochs, each in an order of its own."""
    batches = []
    for epoch in range(how.epochs):
        order = list(groups)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        size = how.prompts_per_step
        batches += [order[start : start + size] for start in range(0, len(order), size)]
    return batches
