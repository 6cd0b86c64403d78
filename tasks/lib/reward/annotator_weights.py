"""How much each annotator's rankings count in training: careless annotators less, or not at all."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.lib.annotation.agreement import reliability, verdicts
from tasks.lib.data.rows import Row
from tasks.lib.reward.groups import NOT_RANKED, Group
from tasks.lib.stage import Problem


def reliability_weights(groups: Sequence[Group]) -> dict[str, float]:
    """annotator -> 2p - 1 for the probability p of ordering a pair as it truly is (agreement.reliability).

    Who is right no more often than a coin gets 0. Ties say nothing about reliability: an annotator who has only ties
    is not in the result and counts nothing, either. Problem when nobody is better than a coin.
    """
    weights = {}
    for name, rate in reliability(verdicts(_rankings(groups))).items():
        weights[name] = max(0.0, 2 * rate - 1)
    if not any(weights.values()):
        raise Problem("reward.training.annotator_weights: no annotator is better than a coin; use equal")
    print("reward: weights of annotators:", ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items()))
    return weights


def _rankings(groups: Sequence[Group]) -> list[Row]:
    """The rankings of the groups, each with the answers that its annotator ranked."""
    rankings: list[Row] = []
    for group in groups:
        for annotator, ranks in zip(group.annotators, group.ranks, strict=True):
            rank_of = {a: rank for a, rank in zip(group.answers, ranks, strict=True) if rank != NOT_RANKED}
            ranking: Row = {"prompt_key": group.prompt_key, "annotator": annotator}
            ranking["answers"] = list(rank_of)
            ranking["ranks"] = list(rank_of.values())
            rankings.append(ranking)
    return rankings
