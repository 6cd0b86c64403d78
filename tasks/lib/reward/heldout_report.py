"""A reward model judged by rankings that it never saw: the figures of its report, and its accuracy by source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tasks.lib.annotation.agreement import verdicts, with_prompt_keys
from tasks.lib.reward import calibration
from tasks.lib.reward.ensemble import disagreement, ensemble_figures
from tasks.lib.reward.reward_model import Group, group_scores, grouped, room_of, tokenized
from tasks.lib.settings.ties import Ties
from tasks.lib.stage import Problem

Row = dict[str, Any]
# values, the prompt of each, a word that names the draw, bounds -> an interval (mean, low, high)
Mean = Callable[[Sequence[float], Sequence[str], str, tuple[float, float]], Any]


def judge(
    rows: Sequence[Row],
    groups: Sequence[Group],
    by_head: Sequence[Tensor],
    by_words: Sequence[Sequence[float]],
    ties: tuple[Ties, float],
    interval: Mean,
) -> tuple[Row, list[dict[str, float]]]:
    """Figures on held-out rankings, and bins of the reliability plot.

    `by_head`: raw rewards (K, heads) of every group's answers; `by_words`: those of the bag of words; `ties`: the
    likelihood trained with and its parameter. Rankings of prompts that are in no group do not count. Problem when
    no pair is ordered.
    """
    keyed = _keyed(rows, groups)
    votes = verdicts(keyed)
    rewards = _by_answer(groups, [of_group.mean(-1).tolist() for of_group in by_head])
    judged = calibration.judged_pairs(votes, rewards)
    if not judged:
        raise Problem("no pair of held-out answers is ordered (all tied); a reward model cannot be judged")
    hits, prompts = [pair.hit for pair in judged], [pair.prompt_key for pair in judged]
    word_hits = [pair.hit for pair in calibration.judged_pairs(votes, _by_answer(groups, by_words))]
    gains = [hit - theirs for hit, theirs in zip(hits, word_hits, strict=True)]
    overall, gain = interval(hits, prompts, "bootstrap", (0, 1)), interval(gains, prompts, "gain", (-1, 1))
    margins = [pair.margin for pair in judged]
    bins = calibration.reliability_bins(calibration.confidence(margins, *ties), hits)
    scaled = calibration.reliability_bins(calibration.scaled_confidence(judged), hits)
    temperature = calibration.temperature(margins)
    figures = {
        "heldout_prompts": len(groups),
        "heldout_pairs": len(judged),
        "pair_accuracy": overall.mean,
        "pair_accuracy_low": overall.low,
        "pair_accuracy_high": overall.high,
        **calibration.accuracies(votes, rewards),
        **calibration.by_source(judged, {(row["prompt_key"], row["annotator"]): row["source"] for row in keyed}),
        "accuracy_bag_of_words": sum(word_hits) / len(word_hits),
        "gain_over_bag_of_words": gain.mean,
        "gain_over_bag_of_words_low": gain.low,
        "gain_over_bag_of_words_high": gain.high,
        "ece": calibration.calibration_error(bins),
        "ece_scaled": calibration.calibration_error(scaled),
        "temperature": temperature,
    }
    of_heads = [[of_group[:, head].tolist() for of_group in by_head] for head in range(by_head[0].shape[1])]
    judged_by_head = [calibration.judged_pairs(votes, _by_answer(groups, of_head)) for of_head in of_heads]
    apart = [disagreement(of_group, temperature) for of_group in by_head]
    return figures | ensemble_figures(judged, judged_by_head, apart), bins


def accuracy_by_source(
    model: Any, tokenizer: Any, rows: Sequence[Row], batch_size: int
) -> dict[str, tuple[float, int]]:
    """source -> (share of pairs ordered right, pairs) of rankings; RewardBench's `subset` is its source.

    Sources of which no ordered pair fits the model are left out.
    """
    found = {}
    for source in sorted({row["source"] for row in rows}):
        mine = [row for row in rows if row["source"] == source]
        groups = tokenized(tokenizer, grouped(mine), room_of(model))
        rewards = _by_answer(groups, group_scores(model, groups, batch_size=batch_size))
        if judged := calibration.judged_pairs(verdicts(_keyed(mine, groups)), rewards):
            found[source] = calibration.accuracy(judged) or 0.0, len(judged)
    return found


def _keyed(rows: Sequence[Row], groups: Sequence[Group]) -> list[Row]:
    """The rows about the prompts of the groups, with their `prompt_key`."""
    fits = {group.prompt_key for group in groups}
    return [row for row in with_prompt_keys(rows) if row["prompt_key"] in fits]


def _by_answer(groups: Sequence[Group], scores: Sequence[Sequence[float]]) -> Mapping[tuple[str, str], float]:
    return {
        (group.prompt_key, answer): reward
        for group, of_group in zip(groups, scores, strict=True)
        for answer, reward in zip(group.answers, of_group, strict=True)
    }
