"""reward: a reward model learns the rankings, starting from the SFT model.

Reads   models/sft, data/preferences/{train,heldout}.parquet, data/candidates/candidates.parquet,
        reports/check/rankings.json
Writes  models/reward, reports/reward.json, reports/plots/reward.{csv,png},
        reports/plots/reward_reliability.{csv,png}
Run     python -m tasks.reward
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch  # noqa: F401  so that main seeds it and limits its threads
from pydantic import BaseModel, Field

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.plots import curves, reliability
from tasks.lib.policy.checkpoints import Checkpoint, file_hash
from tasks.lib.policy.models import load_policy, load_tokenizer, save_model, weights_hash
from tasks.lib.preferences import calibration
from tasks.lib.preferences.agreement import verdicts
from tasks.lib.preferences.rankings import prompt_id
from tasks.lib.preferences.reward_model import Group, from_policy, group_scores, grouped, normalise, tokenized
from tasks.lib.preferences.reward_training import Training, train
from tasks.lib.stage import Problem, Stage, main

CANDIDATES = Path("data/candidates/candidates.parquet")
TRAIN, HELDOUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
Rows = list[dict[str, Any]]


class Params(BaseModel, extra="forbid"):
    training: Training = Training()
    batch_size: int = Field(default=256, ge=1)
    reference_prompts: int = Field(default=256, ge=1)
    require_above_chance: bool = True


def run(params: Params, stage: Stage) -> None:
    train_rows, heldout = read_parquet(TRAIN), read_parquet(HELDOUT)
    tokenizer = load_tokenizer("models/sft")
    model = from_policy(load_policy("models/sft"), stage.seed_of("head"))
    groups = _fitting(model, tokenizer, grouped(train_rows), TRAIN)
    fingerprint = {
        **params.training.model_dump(exclude={"checkpoint_every"}),
        "seed": stage.seed,
        "models/sft": weights_hash("models/sft"),
        str(TRAIN): file_hash(TRAIN),
    }
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    history = train(
        model,
        groups,
        params.training,
        seed=stage.seed_of("order"),
        checkpoint=checkpoint,
        progress=stage.progress,
    )

    candidates = read_parquet(CANDIDATES)[: params.reference_prompts]
    reference = [Group(c["id"], c["prompt"], c["answers"]) for c in candidates]
    reference = _fitting(model, tokenizer, reference, CANDIDATES)
    scores = group_scores(model, reference, batch_size=params.batch_size)
    normalise(model, [reward for of_prompt in scores for reward in of_prompt])

    figures, bins = _judge(model, tokenizer, heldout, params, stage)
    if params.require_above_chance and figures["pair_accuracy"] <= 0.5:
        raise Problem(
            f"reward: held-out pairs are ordered right in {figures['pair_accuracy']:.3f} of "
            f"{figures['heldout_pairs']} cases, no better than a coin; the model is not written. Do the "
            "annotators agree (reports/preferences.json)? Then try reward.training.learning_rate and epochs"
        )
    save_model(model, tokenizer, "models/reward")
    stage.report(
        {
            **figures,
            "steps": len(history),
            "train_prompts": len(groups),
            "train_rankings": len(train_rows),
            "train_loss_first": history[0]["loss"],
            "train_loss_last": history[-1]["loss"],
            "reward_mean": model.config.reward_mean,
            "reward_std": model.config.reward_std,
        }
    )
    panels = {"Loss": ["loss"], "Pair accuracy in training": ["accuracy"]}
    curves(Path("reports/plots/reward"), history, "step", panels)
    reliability(Path("reports/plots/reward_reliability"), bins)
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
    model: Any, tokenizer: Any, heldout: Rows, params: Params, stage: Stage
) -> tuple[dict[str, Any], Rows]:
    """Figures on held-out rankings, and the bins of the reliability plot."""
    groups = _fitting(model, tokenizer, grouped(heldout), HELDOUT)
    scores = group_scores(model, groups, batch_size=params.batch_size)
    reward_of = {
        (group.prompt_id, answer): reward
        for group, of_group in zip(groups, scores, strict=True)
        for answer, reward in zip(group.answers, of_group, strict=True)
    }
    fits = {group.prompt_id for group in groups}
    keyed = [{**row, "prompt_id": prompt_id(row["prompt"])} for row in heldout]
    votes = verdicts(row for row in keyed if row["prompt_id"] in fits)
    judged = calibration.judged_pairs(votes, reward_of)
    if not judged:
        raise Problem(f"{HELDOUT}: no pair of answers is ordered (all tied); a reward model cannot be judged")
    hits, prompts = [pair.hit for pair in judged], [pair.prompt_id for pair in judged]
    overall = mean_interval(hits, seed=stage.seed_of("bootstrap"), groups=prompts, bounds=(0, 1))
    sure = calibration.confidence(
        [pair.margin for pair in judged], params.training.ties, params.training.tie_parameter
    )
    bins = calibration.reliability_bins(sure, hits)
    figures = {
        "heldout_prompts": len(groups),
        "heldout_pairs": len(judged),
        "pair_accuracy": overall.mean,
        "pair_accuracy_low": overall.low,
        "pair_accuracy_high": overall.high,
        **calibration.accuracies(votes, reward_of),
        "ece": calibration.calibration_error(bins),
    }
    return figures, bins


if __name__ == "__main__":
    main(__file__, Params, run)
