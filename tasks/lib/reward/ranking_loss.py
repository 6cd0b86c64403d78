"""The loss of a reward model on rankings: every pair of one prompt at once, ties included.

Pure mathematics on torch tensors. InstructGPT (arXiv 2203.02155), equation 1, extended by the two
classical models of a tie: Rao and Kupper (JASA 1967) and Davidson (JASA 1970).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.lib.settings.ties import Ties


def pairs(ranks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs of every ranking, the better answer first.

    ranks (R, K): 0 is best, equal is a tie, below 0 means not ranked.
    Returns (row, better, worse, is_tie), each (M,): indices into R, K, K, and a mask.
    """
    answers = ranks.shape[1]
    first, second = torch.triu_indices(answers, answers, offset=1, device=ranks.device)
    is_ranked = (ranks[:, first] >= 0) & (ranks[:, second] >= 0)
    row, column = is_ranked.nonzero(as_tuple=True)
    i, j = first[column], second[column]
    order = ranks[row, j] - ranks[row, i]
    return row, torch.where(order >= 0, i, j), torch.where(order >= 0, j, i), order == 0


def pair_losses(difference: Tensor, is_tie: Tensor, ties: Ties, tie_parameter: float) -> Tensor:
    """Negative log-likelihood of each pair (M,), given r_better - r_worse (M,).

    Rao-Kupper, theta > 1:  P(win) = sigmoid(d - log theta), P(tie) = (theta^2 - 1) P(win) P(loss).
    Davidson, nu > 0:       P(win) : P(loss) : P(tie) = exp(d/2) : exp(-d/2) : nu.
    drop: Bradley-Terry, P(win) = sigmoid(d); a tie costs nothing and teaches nothing.
    """
    if ties == "rao_kupper":
        if tie_parameter <= 1:
            raise ValueError(f"Rao-Kupper needs a tie parameter above 1, found {tie_parameter}")
        shift = math.log(tie_parameter)
        win, loss = F.logsigmoid(difference - shift), F.logsigmoid(-difference - shift)
        return -torch.where(is_tie, math.log(tie_parameter**2 - 1) + win + loss, win)
    if ties == "davidson":
        if tie_parameter <= 0:
            raise ValueError(f"Davidson needs a tie parameter above 0, found {tie_parameter}")
        even = torch.full_like(difference, math.log(tie_parameter))
        logs = torch.stack([difference / 2, -difference / 2, even]).log_softmax(0)
        return -torch.where(is_tie, logs[2], logs[0])
    return torch.where(is_tie, 0.0, -F.logsigmoid(difference))


def ranking_loss(
    rewards: Tensor,
    ranks: Tensor,
    *,
    ties: Ties = "drop",
    tie_parameter: float = 1.5,
    centring: float = 0.0,
    margins: Tensor | None = None,
    weights: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """Mean over rankings of the mean loss of a ranking's pairs; a scalar.

    rewards (R, K), ranks (R, K) with 0 best, equal = tie, below 0 = not ranked (its reward is ignored).
    Each ranking weighs the same whatever its K: the 1/C(K,2) of equation 1, with C(K,2) replaced by the
    number of pairs that count. `margins` (R,): how far apart the answers of a ranking that are no tie should at
    least be (Llama 2, arXiv 2307.09288, equation 2). `weights` (R,): how much a ranking counts; not all 0.
    `centring` adds centring * (r_w + r_l)^2 (arXiv 2312.09244), on ties too.
    Rankings without a pair that counts are left out; without any the loss is 0. These rankings may be part of a step:
    `total` is then the `total_weight` of the whole step, and the losses of its parts add up to the step's.
    """
    row, better, worse, is_tie = _counting_pairs(ranks, ties)
    if not len(row):
        return rewards.sum() * 0.0
    winners, losers = rewards[row, better], rewards[row, worse]
    difference = winners - losers
    if margins is not None:
        difference = difference - torch.where(is_tie, 0.0, margins[row])
    losses = pair_losses(difference, is_tie, ties, tie_parameter) + centring * (winners + losers) ** 2
    count = torch.bincount(row, minlength=len(ranks))
    if weights is None:
        weights = torch.ones_like(losses[:1]).expand(len(ranks))
    if total is None:
        total = (weights * (count > 0)).sum()
    return (losses * weights[row] / count[row]).sum() / total


def total_weight(ranks: Tensor, weights: Tensor, ties: Ties) -> Tensor:
    """The weights (R,) of those rankings (R, K) that have a pair that counts, added up: what `ranking_loss` divides
    by; a scalar."""
    row, _, _, _ = _counting_pairs(ranks, ties)
    return (weights * (torch.bincount(row, minlength=len(ranks)) > 0)).sum()


def _counting_pairs(ranks: Tensor, ties: Ties) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `pairs` that the loss counts: all, or with `drop` those that are no ties."""
    found = pairs(ranks)
    if ties != "drop":
        return found
    row, better, worse, is_tie = (each[~found[3]] for each in found)
    return row, better, worse, is_tie
