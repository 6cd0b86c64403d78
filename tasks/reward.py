"""reward: a reward model learns the rankings, starting from the SFT model.

Reads   models/sft, data/preferences/{train,heldout}.parquet, data/candidates/candidates.parquet,
        reports/check/rankings.json, data/raw/benchmarks (params reward.benchmarks)
Writes  models/reward, reports/reward.json, reports/plots/reward.{csv,png},
        reports/plots/reward_{reliability,scores}.{csv,png}
Run     python -m tasks.reward
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.plots import curves, reliability
from tasks.lib.policy.checkpoints import Checkpoint, file_hash
from tasks.lib.policy.folders import weights_hash
from tasks.lib.policy.models import load_policy, load_tokenizer, save_model
from tasks.lib.preferences import calibration
from tasks.lib.preferences.agreement import verdicts
from tasks.lib.preferences.baselines import bag_of_words
from tasks.lib.preferences.ensemble import disagreement, ensemble_figures
from tasks.lib.preferences.exports import SUFFIXES
from tasks.lib.preferences.rankings import prompt_id
from tasks.lib.preferences.reward_adapters import Method, adapt, merge
from tasks.lib.preferences.reward_attributes import Rated, attribute_figures, rated_answers
from tasks.lib.preferences.reward_model import (
    Group,
    attributes_of,
    from_policy,
    group_heads,
    grouped,
    normalise,
    raw_outputs,
    tokenized,
)
from tasks.lib.preferences.reward_training import Training, train
from tasks.lib.preferences.scoring import accuracy_by_source
from tasks.lib.stage import Problem, Stage, main

CANDIDATES = Path("data/candidates/candidates.parquet")
TRAIN, HELDOUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
Rows = list[dict[str, Any]]
BESIDE = {
    "noise_ceiling": "what one annotator reaches against the majority of the others",
    "best_possible": "what no ordering can exceed: annotators contradict each other",
    "accuracy_bag_of_words": "the words of the answer alone, without the prompt",
    "accuracy_longer": "the longer answer is better",
}


class Params(BaseModel, extra="forbid"):
    heads: int = Field(default=1, ge=1)
    method: Method = "full"
    lora: dict[str, Any] = {}
    training: Training = Training()
    batch_size: int = Field(default=256, ge=1)
    reference_prompts: int = Field(default=256, ge=1)
    benchmarks: str = "data/raw/benchmarks"
    require_above_chance: bool = True


def run(params: Params, stage: Stage) -> None:
    train_rows, heldout = read_parquet(TRAIN), read_parquet(HELDOUT)
    tokenizer = load_tokenizer("models/sft")
    model = from_policy(
        load_policy("models/sft"), stage.seed_of("head"), params.heads, params.training.attributes
    )
    adapt(model, params.method, params.lora)
    groups = _fitting(model, tokenizer, grouped(train_rows), TRAIN)
    fingerprint = {
        **params.training.model_dump(exclude={"checkpoint_every"}),
        **params.model_dump(include={"heads", "method", "lora"}),
        "seed": stage.seed,
        "models/sft": weights_hash("models/sft"),
        str(TRAIN): file_hash(TRAIN),
    }
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    history = train(
        model,
        groups,
        params.training,
        rated=_rated(model, tokenizer, "train", params.training.attributes),
        seed=stage.seed_of("order"),
        checkpoint=checkpoint,
        progress=stage.progress,
    )
    if params.method == "lora":
        merge(model)

    candidates = read_parquet(CANDIDATES)[: params.reference_prompts]
    reference = [Group(c["id"], c["prompt"], c["answers"]) for c in candidates]
    reference = _fitting(model, tokenizer, reference, CANDIDATES)
    normalise(model, torch.cat(group_heads(model, reference, batch_size=params.batch_size)))

    heldout_groups = _fitting(model, tokenizer, grouped(heldout), HELDOUT)
    by_head = group_heads(model, heldout_groups, batch_size=params.batch_size)
    scores = [of_group.mean(-1).tolist() for of_group in by_head]
    words = bag_of_words(groups, heldout_groups)
    figures, bins = _judge(heldout, heldout_groups, by_head, words, params, stage)
    if params.require_above_chance and figures["pair_accuracy"] <= 0.5:
        raise Problem(
            f"reward: held-out pairs are ordered right in {figures['pair_accuracy']:.3f} of "
            f"{figures['heldout_pairs']} cases, no better than a coin; the model is not written. Do the "
            "annotators agree (reports/preferences.json)? Then try reward.training.learning_rate and epochs"
        )
    mean, std = model.config.reward_mean, model.config.reward_std
    normal = [[(raw - mean) / std for raw in of_group] for of_group in scores]
    model.config.reward_temperature = figures["temperature"]
    save_model(model, tokenizer, "models/reward")
    stage.report(
        {
            **figures,
            **calibration.score_figures(
                [reward for of_group in normal for reward in of_group],
                [answer for group in heldout_groups for answer in group.answers],
            ),
            "steps": len(history),
            "train_prompts": len(groups),
            "train_rankings": len(train_rows),
            "train_loss_first": history[0]["loss"],
            "train_loss_last": history[-1]["loss"],
            "reward_mean": model.config.reward_mean,
            "reward_std": model.config.reward_std,
            **_attribute_figures(model, tokenizer, params),
            **_benchmarks(Path(params.benchmarks), params.batch_size),
        }
    )
    _tell(figures)
    panels = {"Loss": ["loss"], "Pair accuracy in training": ["accuracy"]}
    curves(Path("reports/plots/reward"), history, "step", panels)
    reliability(Path("reports/plots/reward_reliability"), bins)
    bins_of_scores = calibration.histogram(normal, [_is_best(group) for group in heldout_groups])
    panels = {"Share of held-out answers by reward": ["best", "others"]}
    curves(Path("reports/plots/reward_scores"), bins_of_scores, "reward", panels)
    checkpoint.clear()


def _fitting(model: Any, tokenizer: Any, groups: list[Group], path: Path) -> list[Group]:
    """The groups that fit the model, tokenized; how many do not is said. Problem when none does."""
    room = getattr(model.config, "max_position_embeddings", None)
    fitting = tokenized(tokenizer, groups, room)
    if len(fitting) < len(groups):
        print(f"reward: {path}: {len(groups) - len(fitting)} prompts left out, longer than {room} tokens")
    if not fitting:
        raise Problem(f"{path}: no prompt with its answers fits the model's {room} tokens; use shorter ones")
    return fitting


def _judge(
    heldout: Rows,
    groups: list[Group],
    by_head: list[torch.Tensor],
    words: list[list[float]],
    params: Params,
    stage: Stage,
) -> tuple[dict[str, Any], Rows]:
    """Figures on held-out rankings from raw rewards (K, heads) of every prompt (and from those of the bag of
    words), and reliability bins."""
    scores = [of_group.mean(-1).tolist() for of_group in by_head]
    fits = {group.prompt_id for group in groups}
    keyed = [{**row, "prompt_id": prompt_id(row["prompt"])} for row in heldout]
    keyed = [row for row in keyed if row["prompt_id"] in fits]
    votes = verdicts(keyed)
    judged = calibration.judged_pairs(votes, _by_answer(groups, scores))
    if not judged:
        raise Problem(f"{HELDOUT}: no pair of answers is ordered (all tied); a reward model cannot be judged")
    hits, prompts = [pair.hit for pair in judged], [pair.prompt_id for pair in judged]
    by_words = [pair.hit for pair in calibration.judged_pairs(votes, _by_answer(groups, words))]
    gains = [hit - theirs for hit, theirs in zip(hits, by_words, strict=True)]
    overall = mean_interval(hits, seed=stage.seed_of("bootstrap"), groups=prompts, bounds=(0, 1))
    gain = mean_interval(gains, seed=stage.seed_of("gain"), groups=prompts, bounds=(-1, 1))
    margins = [pair.margin for pair in judged]
    sure = calibration.confidence(margins, params.training.ties, params.training.tie_parameter)
    bins = calibration.reliability_bins(sure, hits)
    scaled = calibration.reliability_bins(calibration.scaled_confidence(judged), hits)
    source_of = {(row["prompt_id"], row["annotator"]): row["source"] for row in keyed}
    figures = {
        "heldout_prompts": len(groups),
        "heldout_pairs": len(judged),
        "pair_accuracy": overall.mean,
        "pair_accuracy_low": overall.low,
        "pair_accuracy_high": overall.high,
        **calibration.accuracies(votes, _by_answer(groups, scores)),
        **calibration.by_source(judged, source_of),
        "accuracy_bag_of_words": sum(by_words) / len(by_words),
        "gain_over_bag_of_words": gain.mean,
        "gain_over_bag_of_words_low": gain.low,
        "gain_over_bag_of_words_high": gain.high,
        "ece": calibration.calibration_error(bins),
        "ece_scaled": calibration.calibration_error(scaled),
        "temperature": calibration.temperature(margins),
    }
    judged_by_head = [
        calibration.judged_pairs(
            votes, _by_answer(groups, [of_group[:, head].tolist() for of_group in by_head])
        )
        for head in range(params.heads)
    ]
    apart = [disagreement(of_group, figures["temperature"]) for of_group in by_head]
    return figures | ensemble_figures(judged, judged_by_head, apart), bins


def _rated(model: Any, tokenizer: Any, split: str, names: list[str]) -> list[Rated]:
    """The rated answers of a split; Problem when an attribute has none."""
    if not names:
        return []
    path = Path(f"data/preferences/ratings_{split}.parquet")
    if not path.is_file():
        raise Problem(
            f"reward.training.attributes: {path} does not exist; name them in preferences.attributes"
        )
    room = getattr(model.config, "max_position_embeddings", None)
    found = rated_answers(read_parquet(path), names, tokenizer, room)
    for place, name in enumerate(names):
        if all(math.isnan(answer.values[place]) for answer in found):
            raise Problem(
                f"reward.training.attributes: {path} has no answer of {room} tokens rated by {name}"
            )
    return found


def _attribute_figures(model: Any, tokenizer: Any, params: Params) -> dict[str, float]:
    if not (heldout := _rated(model, tokenizer, "heldout", params.training.attributes)):
        return {}
    found = raw_outputs(model, [answer.sequence for answer in heldout], batch_size=params.batch_size)
    given = torch.tensor([answer.values for answer in heldout])
    return attribute_figures(params.training.attributes, attributes_of(model, found), given)


def _benchmarks(folder: Path, batch_size: int) -> dict[str, float]:
    """`benchmark_<file>` and `benchmark_<file>_<subset>`: the share of pairs ordered right, of every file."""
    if not folder.is_dir():
        raise Problem(f"reward.benchmarks: {folder} is not a folder; name one, which may hold no file")
    figures = {}
    for file in sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES):
        shares = accuracy_by_source(Path("models/reward"), file, batch_size)
        pairs = sum(count for _, count in shares.values())
        name = f"benchmark_{file.name.split('.')[0]}"
        figures[name] = sum(share * count for share, count in shares.values()) / pairs
        if shares.keys() != {file.stem}:  # rows without a subset have their file as source
            figures |= {f"{name}_{'_'.join(subset.split())}": share for subset, (share, _) in shares.items()}
        print(f"reward: {file}: {figures[name]:.3f} of {pairs} pairs ordered right")
    return figures


def _by_answer(groups: list[Group], scores: list[list[float]]) -> dict[tuple[str, str], float]:
    return {
        (group.prompt_id, answer): reward
        for group, of_group in zip(groups, scores, strict=True)
        for answer, reward in zip(group.answers, of_group, strict=True)
    }


def _is_best(group: Group) -> list[bool]:
    """Whether somebody ranked the answer first, per answer."""
    return [any(ranks[place] == 0 for ranks in group.ranks) for place in range(len(group.answers))]


def _tell(figures: dict[str, Any]) -> None:
    """The comparison that decides whether the reward model is worth something, in the run's output."""
    accuracy = f"[{figures['pair_accuracy_low']:.3f}, {figures['pair_accuracy_high']:.3f}]"
    print(f"reward: held-out pairs ordered right {figures['pair_accuracy']:.3f} {accuracy}; against")
    for name, meaning in BESIDE.items():
        if name in figures:
            print(f"reward:   {figures[name]:.3f}  {meaning}")


if __name__ == "__main__":
    main(__file__, Params, run)
