"""What a reward model is worth on rankings that it never saw: the figures of its report, and its accuracy by source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from tasks.lib.annotation.agreement import Verdicts, verdicts, with_prompt_keys
from tasks.lib.data.rows import Row
from tasks.lib.reward.accuracy import OrderedPair, Rewards, accuracies, accuracy, by_source, ordered_pairs
from tasks.lib.reward.calibration import (
    calibration_error,
    confidence,
    reliability_bins,
    scaled_confidence,
    temperature,
)
from tasks.lib.reward.ensemble import disagreement, ensemble_figures
from tasks.lib.reward.groups import Group, group_heads, grouped, tokenize
from tasks.lib.reward.reward_model import room_of
from tasks.lib.settings.ties import Ties
from tasks.lib.stage import Problem

# values, the prompt of each, a word that names the draw, bounds -> mean, low end and high end of its interval
Interval = Callable[[Sequence[float], Sequence[str], str, tuple[float, float]], tuple[float, float, float]]
Bins = list[dict[str, float]]


def heldout_figures(
    rows: Sequence[Row],
    groups: Sequence[Group],
    by_head: Sequence[Tensor],
    by_words: Sequence[Tensor],
    ties: tuple[Ties, float],
    interval: Interval,
) -> tuple[Row, Bins]:
    """Figures on held-out rankings, and the bins of the calibration diagram.

    `by_head`: raw rewards (K, heads) of every group's answers; `by_words`: those (K, 1) of the bag of words; `ties`:
    the likelihood trained with and its parameter. Rankings of prompts that are in no group do not count. Problem when
    no pair is ordered.
    """
    ranked = _about(rows, groups)
    votes = verdicts(ranked)
    rewards = _rewards(groups, by_head)
    pairs = ordered_pairs(votes, rewards)
    if not pairs:
        raise Problem("no pair of held-out answers is ordered (all tied); a reward model cannot be judged")
    hits, margins, prompts = [], [], []
    for pair in pairs:
        hits.append(pair.hit)
        margins.append(pair.margin)
        prompts.append(pair.prompt_key)
    share, low, high = interval(hits, prompts, "bootstrap", (0, 1))
    figures: Row = {
        "heldout_prompts": len(groups),
        "heldout_pairs": len(pairs),
        "pair_accuracy": share,
        "pair_accuracy_low": low,
        "pair_accuracy_high": high,
    }
    figures |= accuracies(votes, rewards)
    source_of = {}
    for row in ranked:
        source_of[row["prompt_key"], row["annotator"]] = row["source"]
    figures |= by_source(pairs, source_of)
    figures |= _gain_figures(hits, ordered_pairs(votes, _rewards(groups, by_words)), interval)
    bins = reliability_bins(confidence(margins, *ties), hits)
    figures["ece"] = calibration_error(bins)
    figures["ece_scaled"] = calibration_error(reliability_bins(scaled_confidence(pairs), hits))
    figures["temperature"] = temperature(margins)
    figures |= _head_figures(votes, pairs, groups, by_head, figures["temperature"])
    return figures, bins


def _gain_figures(hits: Sequence[float], pairs: Sequence[OrderedPair], interval: Interval) -> Row:
    """The accuracy of the bag of words, which ordered `pairs`, and how much better the `hits` of the rewards are."""
    gains, prompts = [], []
    for hit, pair in zip(hits, pairs, strict=True):
        gains.append(hit - pair.hit)
        prompts.append(pair.prompt_key)
    gain, low, high = interval(gains, prompts, "gain", (-1, 1))
    return {
        "accuracy_bag_of_words": accuracy(pairs),
        "gain_over_bag_of_words": gain,
        "gain_over_bag_of_words_low": low,
        "gain_over_bag_of_words_high": high,
    }


def _head_figures(
    votes: Verdicts,
    pairs: Sequence[OrderedPair],
    groups: Sequence[Group],
    by_head: Sequence[Tensor],
    temperature: float,
) -> dict[str, float]:
    """The figures of an ensemble, whose heads order the same pairs."""
    pairs_by_head = []
    for head in range(by_head[0].shape[1]):
        pairs_by_head.append(ordered_pairs(votes, _rewards(groups, by_head, head)))
    disagreements = [disagreement(of_group, temperature) for of_group in by_head]
    return ensemble_figures(pairs, pairs_by_head, disagreements)


def accuracy_by_source(
    model: Any, tokenizer: Any, rows: Sequence[Row], batch_size: int
) -> dict[str, tuple[float, int]]:
    """source -> (share of pairs ordered right, pairs) of rankings; RewardBench's `subset` is its source.

    Sources of which no ordered pair fits the model are left out.
    """
    shares = {}
    for source in sorted({row["source"] for row in rows}):
        of_source = [row for row in rows if row["source"] == source]
        groups = tokenize(tokenizer, grouped(of_source), room_of(model))
        rewards = _rewards(groups, group_heads(model, groups, batch_size=batch_size))
        pairs = ordered_pairs(verdicts(_about(of_source, groups)), rewards)
        if pairs:
            shares[source] = accuracy(pairs) or 0.0, len(pairs)
    return shares


def _about(rows: Sequence[Row], groups: Sequence[Group]) -> list[Row]:
    """The rows about the prompts of the groups, with their prompt_key."""
    keys = {group.prompt_key for group in groups}
    return [row for row in with_prompt_keys(rows) if row["prompt_key"] in keys]


def _rewards(groups: Sequence[Group], by_head: Sequence[Tensor], head: int | None = None) -> Rewards:
    """The raw rewards of all answers by one head, or the mean of the heads, from those (K, heads) of every group."""
    rewards = {}
    for group, of_group in zip(groups, by_head, strict=True):
        of_answers = of_group.mean(-1) if head is None else of_group[:, head]
        for answer, reward in zip(group.answers, of_answers.tolist(), strict=True):
            rewards[group.prompt_key, answer] = reward
    return rewards
