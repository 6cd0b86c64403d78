"""How the reward model is trained: all answers and all annotators of a prompt in one step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.pass_size import passes_within, training_tokens
from tasks.lib.reward.annotator_weights import reliability_weights
from tasks.lib.reward.ensemble import bootstrap_counts
from tasks.lib.reward.groups import Group, all_sequences, batch_ranks
from tasks.lib.reward.ranking_loss import pairs, ranking_loss, total_weight
from tasks.lib.reward.reward_attributes import Rated, attribute_loss, rated_batches, sequences_of, set_scales, values_of
from tasks.lib.reward.reward_model import heads_of, outputs
from tasks.lib.reward.shared_prompt import refuse_unless_equal, row_length, shared_outputs
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
    if rated:
        set_scales(model, rated)
    rated_of_step = rated_batches(rated, how.epochs, len(batches), seed)
    weight_of = reliability_weights(groups) if how.annotator_weights == "reliability" else None
    if how.share_prompt:
        refuse_unless_equal(model, groups[0])
    warmup = max(1, round(len(batches) * how.warmup_share))

    def rate_at(step: int) -> float:
        return how.learning_rate * warmup_then_cosine(step, len(batches), warmup, floor=0.0, falls_at_once=True)

    def backward(step: int) -> tuple[Tensor, dict[str, float]]:
        return backward_of_step(model, batches[step], rated_of_step[step], how, weight_of, seed)

    def advice(step: int) -> str:
        first_of_each = ", ".join(group.rows[0] for group in batches[step] if group.rows)
        return f"lower reward.training.learning_rate, or look at the rankings {first_of_each[:200]}"

    Optimizer: Any = Muon if how.optimizer == "muon" else torch.optim.AdamW
    # Muon takes the model, in which it tells the matrices of the layers from embeddings and head
    trained = model if how.optimizer == "muon" else [p for p in model.parameters() if p.requires_grad]
    return train_steps(
        "reward",
        model,
        Optimizer(trained, lr=how.learning_rate, weight_decay=how.weight_decay),
        backward,
        steps=len(batches),
        rate_at=rate_at,
        max_grad_norm=how.max_grad_norm,
        checkpoint=checkpoint,
        save_every=how.checkpoint_every,
        progress=progress,
        advice=advice,
    )


@dataclass(frozen=True)
class Whole:
    """What a step's rankings count together, which its passes are parts of."""

    totals: Tensor  # (heads,) what the sums of the ranking losses are divided by
    shares: Tensor  # (heads,) how often a head drew a ranking, on average
    pairs: int  # that are no ties


def backward_of_step(
    model: Any,
    batch: list[Group],
    rated: list[Rated],
    how: Training,
    weight_of: dict[str, float] | None,
    seed: int,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a step, whose gradients are added up pass by pass, and the accuracy of the mean reward on the pairs
    that are no ties (0.5 without such a pair).

    Each answer is scored once, whatever the number of annotators, pairs and heads.
    """
    tokens = how.tokens_per_pass or training_tokens(model, logits=False)
    weights, counts = _weights_of_rankings(model, batch, weight_of, seed)
    ranks = batch_ranks(batch)[1].to(model.device)
    totals = [total_weight(ranks, of_head, how.ties) for of_head in weights.unbind(-1)]
    whole = Whole(torch.stack(totals), counts.mean(0), int((~pairs(ranks)[3]).sum()))
    loss, right = torch.zeros((), device=model.device), 0.0
    for groups in passes_of(batch, how.share_prompt, tokens):
        part, right_in_part = _loss(model, groups, how, whole, _weights_of_rankings(model, groups, weight_of, seed)[0])
        part.backward()
        loss, right = loss + part.detach(), right + right_in_part
    if rated:
        loss = loss + _backward_of_attributes(model, rated, how.attribute_weight, tokens)
    return loss, {"accuracy": right / whole.pairs if whole.pairs else 0.5}


def _backward_of_attributes(model: Any, rated: list[Rated], weight: float, tokens: int) -> Tensor:
    """The attributes' part in a step's loss, whose gradients are added up in passes of at most so many tokens."""
    values = int((~values_of(rated).isnan()).sum())
    longest_first = sorted(rated, key=lambda answer: -len(answer.sequence))
    loss = torch.zeros((), device=model.device)
    for answers in passes_within(tokens, longest_first, lambda part: _padded(sequences_of(part))):
        part = weight * attribute_loss(model, answers, values)
        part.backward()
        loss = loss + part.detach()
    return loss


def passes_of(batch: list[Group], share_prompt: bool, tokens: int) -> list[list[Group]]:
    """The groups of a step as one pass if that has at most so many tokens, else as passes of groups of like length.

    All answers to a prompt are in one pass, because the loss compares them.
    """

    def length(group: Group) -> int:
        return row_length(group) if share_prompt else max(map(len, group.sequences))

    def padded(groups: Sequence[Group]) -> int:
        rows = len(groups) if share_prompt else len(all_sequences(groups))
        return rows * max(length(group) for group in groups)

    if padded(batch) <= tokens:
        return [batch]
    return passes_within(tokens, sorted(batch, key=length, reverse=True), padded)


def _padded(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of sequences side by side, padding included."""
    return len(sequences) * max(map(len, sequences))


def _loss(model: Any, groups: list[Group], how: Training, whole: Whole, weights: Tensor) -> tuple[Tensor, float]:
    """The part of some groups in a step's loss, a scalar, and how many of their pairs the mean reward orders right.
    Equal rewards count a half, as in accuracy.py.

    The loss is the mean over the heads of the ranking loss, of each on its own bootstrap sample of the prompts.
    `weights` (R, heads): how much each of the groups' R rankings counts.
    """
    answer_index, ranks = batch_ranks(groups)  # (R, K) each
    answer_index, ranks = answer_index.to(model.device), ranks.to(model.device)
    scored = (
        shared_outputs(model, groups) if how.share_prompt else outputs(model, all_sequences(groups))
    )  # (answers, N)
    by_head = heads_of(model, scored)[answer_index]  # (R, K, heads)
    margins = by_head.new_tensor(_strengths(groups)) * how.strength_margin if how.strength_margin else None  # (R,)
    losses = []
    of_heads = zip(by_head.unbind(-1), weights.unbind(-1), whole.totals, whole.shares, strict=True)
    for scores, weights_of_head, total, share in of_heads:
        loss = ranking_loss(
            scores,
            ranks,
            ties=how.ties,
            tie_parameter=how.tie_parameter,
            centring=how.centring,
            margins=margins,
            weights=weights_of_head,
            total=total,
        )
        losses.append(loss * share)  # a step that a head hardly drew moves it little
    row, better, worse, is_tie = pairs(ranks)
    means = by_head.detach().mean(-1)  # (R, K)
    margin = (means[row, better] - means[row, worse])[~is_tie]
    return torch.stack(losses).mean(), (margin > 0).sum().item() + (margin == 0).sum().item() / 2


def _weights_of_rankings(
    model: Any, groups: list[Group], weight_of: dict[str, float] | None, seed: int
) -> tuple[Tensor, Tensor]:
    """(weights, counts), both (R, heads): how much each ranking of the groups counts for a head, by its annotator and
    by its prompt; and how often a head drew it (a single head: once). `weight_of`: of each annotator; None: all the
    same."""
    heads = getattr(model.config, "reward_heads", 1)
    counts = torch.tensor(_bootstrap_counts(groups, heads, seed), dtype=torch.float32, device=model.device)
    weights = counts + LEAST_WEIGHT if heads > 1 else counts
    if weight_of is not None:
        of_annotators = torch.tensor(_weights(groups, weight_of), device=model.device).unsqueeze(1)  # (R, 1)
        weights = counts * of_annotators + LEAST_WEIGHT if heads > 1 else of_annotators
    return weights, counts


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
