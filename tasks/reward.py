"""reward: a reward model learns the rankings, starting from the SFT model.

Reads   models/sft, data/preferences/{train,heldout}.parquet, data/candidates/candidates.parquet,
        data/preferences/benchmarks/*.parquet where there are any, reports/check/rankings.json;
        with training.attributes data/preferences/ratings_{train,heldout}.parquet
Writes  models/reward, reports/reward.json, reports/plots/reward.{csv,png},
        reports/plots/reward_{reliability,scores}.{csv,png}
Run     python -m tasks.reward
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.models.adapter_folder import save_adapter
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.models.precision import autocast, kept_dtype, round_weights
from tasks.lib.plots import calibration_diagram, curves
from tasks.lib.reward.baselines import bag_of_words
from tasks.lib.reward.groups import Group, group_heads, grouped, tokenize
from tasks.lib.reward.heldout_report import Interval, accuracy_by_source, heldout_figures
from tasks.lib.reward.reward_adapters import adapt, merge
from tasks.lib.reward.reward_attributes import Rated, attribute_figures, rated_answers, sequences_of, values_of
from tasks.lib.reward.reward_model import (
    attributes_of,
    from_policy,
    load_reward,
    normalise,
    raw_outputs,
    raw_scores,
    room_of,
)
from tasks.lib.reward.reward_training import train
from tasks.lib.reward.score_distribution import histogram, ranked_first, score_figures
from tasks.lib.settings.reward import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.read_back import check_read_back

SFT, OUT = Path("models/sft"), Path("models/reward")
CANDIDATES = Path("data/candidates/candidates.parquet")
TRAIN, HELDOUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
RATINGS = {
    "train": Path("data/preferences/ratings_train.parquet"),
    "heldout": Path("data/preferences/ratings_heldout.parquet"),
}
BENCHMARKS = Path("data/preferences/benchmarks")
COMPARED_WITH = {  # figures of the report
    "noise_ceiling": "what one annotator reaches against the majority of the others",
    "best_possible": "what no ordering can exceed: annotators contradict each other",
    "accuracy_bag_of_words": "the words of the answer alone, without the prompt",
    "accuracy_longer": "the longer answer is better",
}


def run(params: Params, stage: Stage) -> None:
    # 1. The rankings by prompt, and the model that learns them.
    train_rows, heldout_rows = read_parquet(TRAIN), read_parquet(HELDOUT)
    tokenizer = load_tokenizer(SFT)
    dtype = torch.float32 if params.method == "full" else None  # what is not trained stays as it is kept
    model = from_policy(load_policy(SFT, dtype=dtype), stage.seed_of("head"), params.heads, params.training.attributes)
    adapt(model, params.method, params.lora)
    groups = _fitting(model, tokenizer, grouped(train_rows), TRAIN)

    # 2. Train.
    checkpoint = Checkpoint(stage.checkpoints, _fingerprint(params, stage.seed))
    kept = kept_dtype(SFT)
    with autocast(model, kept):
        history = train(
            model,
            groups,
            params.training,
            rated=_read_ratings(model, tokenizer, "train", params.training.attributes),
            seed=stage.seed_of("order"),
            checkpoint=checkpoint,
            progress=stage.progress,
        )
    trained = _mean_reward(model, groups[0])
    adapter = merge(model)
    round_weights(model, kept)  # what is measured is what will be loaded
    _set_reward_scale(model, tokenizer, params)

    # 3. Compare with annotators on prompts that were not trained on.
    heldout = _fitting(model, tokenizer, grouped(heldout_rows), HELDOUT)
    by_head = group_heads(model, heldout, batch_size=params.batch_size)  # (K, heads) per prompt
    figures, bins = heldout_figures(
        heldout_rows,
        heldout,
        by_head=by_head,
        by_words=bag_of_words(groups, heldout),
        ties=(params.training.ties, params.training.tie_parameter),
        interval=_interval(stage),
    )
    if params.require_above_chance and figures["pair_accuracy"] <= 0.5:
        raise Problem(
            f"reward: held-out pairs are ordered right in {figures['pair_accuracy']:.3f} of "
            f"{figures['heldout_pairs']} cases, no better than a coin; the model is not written. Do the "
            "annotators agree (reports/preferences.json)? Then try reward.training.learning_rate and epochs"
        )

    # 4. Save and report.
    model.config.reward_temperature = figures["temperature"]
    if adapter:
        save_adapter(adapter, model, tokenizer, SFT, OUT)
    else:
        save_model(model, tokenizer, OUT, dtype=kept)
    check_read_back(OUT, trained, lambda: _mean_reward(load_reward(OUT), groups[0]))
    scores = _normalised_rewards(model, by_head)
    report = dict(figures)
    report |= _distribution(scores, heldout)
    report["steps"] = len(history)
    report["train_prompts"] = len(groups)
    report["train_rankings"] = len(train_rows)
    report["train_loss_first"] = history[0]["loss"]
    report["train_loss_last"] = history[-1]["loss"]
    report["reward_mean"] = model.config.reward_mean
    report["reward_std"] = model.config.reward_std
    report |= _judged_attributes(model, tokenizer, params)
    report |= _judged_benchmarks(model, tokenizer, params.batch_size)
    stage.report(report)
    _print_comparison(figures)
    _draw(history, bins, histogram(scores, [ranked_first(group) for group in heldout]))
    checkpoint.clear()


def _fingerprint(params: Params, seed: int) -> dict[str, Any]:
    """What decides the weights: a checkpoint with other values is discarded."""
    fingerprint = params.training.model_dump(exclude={"checkpoint_every"})
    fingerprint |= params.model_dump(include={"heads", "method", "lora"})
    fingerprint["seed"] = seed
    fingerprint[str(SFT)] = weights_hash(SFT)
    fingerprint[str(TRAIN)] = file_hash(TRAIN)
    if params.training.attributes:
        fingerprint[str(RATINGS["train"])] = file_hash(RATINGS["train"])
    return fingerprint


def _interval(stage: Stage) -> Interval:
    """Bootstrap over whole prompts, because the pairs of one prompt are not independent."""

    def interval(
        values: Sequence[float], prompts: Sequence[str], word: str, bounds: tuple[float, float]
    ) -> tuple[float, float, float]:
        return mean_interval(values, seed=stage.seed_of(word), groups=prompts, bounds=bounds)

    return interval


def _fitting(model: Any, tokenizer: Any, groups: list[Group], path: Path) -> list[Group]:
    """The groups that fit the model, tokenized; the others are counted on the screen. Problem when none fits."""
    room = room_of(model)
    fitting = tokenize(tokenizer, groups, room)
    if len(fitting) < len(groups):
        print(f"reward: {path}: {len(groups) - len(fitting)} prompts left out, longer than {room} tokens")
    if not fitting:
        raise Problem(f"{path}: no prompt with its answers fits the model's {room} tokens; use shorter ones")
    return fitting


def _read_ratings(model: Any, tokenizer: Any, split: str, names: list[str]) -> list[Rated]:
    """The rated answers of a split; Problem when an attribute has none."""
    if not names:
        return []
    path = RATINGS[split]
    if not path.is_file():
        raise Problem(f"reward.training.attributes: {path} does not exist; name them in preferences.attributes")
    room = room_of(model)
    rated = rated_answers(read_parquet(path), names, tokenizer, room)
    for place, name in enumerate(names):
        if all(math.isnan(answer.values[place]) for answer in rated):
            raise Problem(f"reward.training.attributes: {path} has no answer of {room} tokens rated by {name}")
    return rated


def _set_reward_scale(model: Any, tokenizer: Any, params: Params) -> None:
    """Put the mean and standard deviation of the first candidates' rewards into the model: normalised they are 0, 1."""
    candidates = []
    for row in read_parquet(CANDIDATES)[: params.reference_prompts]:
        candidates.append(Group(row["id"], row["prompt"], row["answers"]))
    reference = _fitting(model, tokenizer, candidates, CANDIDATES)
    normalise(model, torch.cat(group_heads(model, reference, batch_size=params.batch_size)))


def _mean_reward(model: Any, group: Group) -> float:
    """The mean raw reward of the answers to a prompt."""
    return mean(raw_scores(model, group.sequences, batch_size=len(group.sequences)))


def _normalised_rewards(model: Any, by_head: list[Tensor]) -> list[list[float]]:
    """The normalised rewards of every group's answers, from their raw ones (K, heads)."""
    mean, std = model.config.reward_mean, model.config.reward_std
    scores = []
    for of_group in by_head:
        raw = of_group.mean(-1).double()
        scores.append(((raw - mean) / std).tolist())
    return scores


def _distribution(scores: list[list[float]], groups: list[Group]) -> dict[str, float]:
    """Where the normalised rewards of the groups' answers lie."""
    all_scores: list[float] = []
    all_answers: list[str] = []
    for of_group, group in zip(scores, groups, strict=True):
        all_scores += of_group
        all_answers += group.answers
    return score_figures(all_scores, all_answers)


def _judged_attributes(model: Any, tokenizer: Any, params: Params) -> dict[str, float]:
    """How well the attributes of held-out answers are predicted; nothing without attributes."""
    names = params.training.attributes
    heldout = _read_ratings(model, tokenizer, "heldout", names)
    if not heldout:
        return {}
    raw = raw_outputs(model, sequences_of(heldout), batch_size=params.batch_size)
    return attribute_figures(names, attributes_of(model, raw), values_of(heldout).float())


def _judged_benchmarks(model: Any, tokenizer: Any, batch_size: int) -> dict[str, float]:
    """`benchmark_<file>` and `benchmark_<file>_<subset>`: the share of pairs ordered right, of every file."""
    figures = {}
    for file in sorted(BENCHMARKS.glob("*.parquet")):
        shares = accuracy_by_source(model, tokenizer, read_parquet(file), batch_size)
        pairs = sum(count for _, count in shares.values())
        if not pairs:
            print(f"reward: {file}: left out, no ordered pair of answers fits the model")
            continue
        name = f"benchmark_{file.stem}"
        figures[name] = sum(share * count for share, count in shares.values()) / pairs
        if len(shares) > 1:
            for subset, (share, _) in shares.items():
                figures[f"{name}_{'_'.join(subset.split())}"] = share
        print(f"reward: {file}: {figures[name]:.3f} of {pairs} pairs ordered right")
    return figures


def _draw(history: list[dict[str, float]], bins: list[dict[str, float]], scores: list[dict[str, float]]) -> None:
    panels = {"Loss": ["loss"], "Pair accuracy in training": ["accuracy"]}
    curves(Path("reports/plots/reward"), history, "step", panels)
    calibration_diagram(Path("reports/plots/reward_reliability"), bins)
    panels = {"Share of held-out answers by reward": ["best", "others"]}
    curves(Path("reports/plots/reward_scores"), scores, "reward", panels)


def _print_comparison(figures: dict[str, Any]) -> None:
    """The comparison that decides whether the reward model is worth something."""
    interval = f"[{figures['pair_accuracy_low']:.3f}, {figures['pair_accuracy_high']:.3f}]"
    print(f"reward: held-out pairs ordered right {figures['pair_accuracy']:.3f} {interval}; against")
    for name, meaning in COMPARED_WITH.items():
        if name in figures:
            print(f"reward:   {figures[name]:.3f}  {meaning}")


if __name__ == "__main__":
    main(__file__, Params, run)
