"""reward: a reward model learns the rankings, starting from the SFT model.

Reads   models/sft, data/preferences/{train,heldout}.parquet, data/candidates/candidates.parquet,
        reports/check/rankings.json
Writes  models/reward, reports/reward.json, reports/plots/reward.{csv,png},
        reports/plots/reward_reliability.{csv,png}
Run     python -m tasks.reward
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, model_validator

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.plots import curves, reliability
from tasks.lib.policy.checkpoints import Checkpoint, file_hash, optimizer_tensors, restore_optimizer
from tasks.lib.policy.models import load_policy, load_tokenizer, save_model, weights_hash
from tasks.lib.preferences import calibration
from tasks.lib.preferences.agreement import agreement_with_others, majority, verdicts
from tasks.lib.preferences.ranking_loss import pairs, ranking_loss
from tasks.lib.preferences.rankings import prompt_id
from tasks.lib.preferences.reward_model import (
    Group,
    batch_ranks,
    encoded,
    from_policy,
    grouped,
    normalise,
    raw_scores,
    rewards,
)
from tasks.lib.stage import Problem, Stage, main

TRAIN, HELDOUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
Rows = list[dict[str, Any]]


class Params(BaseModel, extra="forbid"):
    epochs: int = Field(2, ge=1)
    prompts_per_step: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_share: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ties: Literal["rao_kupper", "davidson", "drop"] = "rao_kupper"
    tie_parameter: float = Field(1.2, gt=0)
    centring: float = Field(0.01, ge=0)
    checkpoint_every: int = Field(25, ge=1)
    batch_size: int = Field(256, ge=1)
    reference_prompts: int = Field(256, ge=1)
    require_above_chance: bool = True

    @model_validator(mode="after")
    def theta_above_one(self) -> Params:
        if self.ties == "rao_kupper" and self.tie_parameter <= 1:
            raise ValueError("tie_parameter must be above 1 for rao_kupper (1 means that ties cannot happen)")
        return self


def run(params: Params, stage: Stage) -> None:
    train, heldout = read_parquet(TRAIN), read_parquet(HELDOUT)
    tokenizer = load_tokenizer("models/sft")
    model = from_policy(load_policy("models/sft"), stage.seed_of("head"))
    fingerprint = {
        **params.model_dump(
            exclude={"checkpoint_every", "batch_size", "require_above_chance", "reference_prompts"}
        ),
        "seed": stage.seed,
        "models/sft": weights_hash("models/sft"),
        str(TRAIN): file_hash(TRAIN),
    }
    checkpoint = Checkpoint(stage.checkpoints, fingerprint)
    history = _train(model, tokenizer, grouped(train), params, stage, checkpoint)

    candidates = read_parquet(Path("data/candidates/candidates.parquet"))[: params.reference_prompts]
    reference = [Group("", c["prompt"], c["answers"], [], [c["id"]]) for c in candidates]
    raw = _score_all(model, tokenizer, reference, params.batch_size)
    normalise(model, [reward for scores in raw for reward in scores])

    figures, bins = _heldout_figures(model, tokenizer, heldout, params, stage)
    figures |= {
        "steps": len(history),
        "train_prompts": len(grouped(train)),
        "train_rankings": len(train),
        "train_loss_first": history[0]["loss"],
        "train_loss_last": history[-1]["loss"],
        "reward_mean": model.config.reward_mean,
        "reward_std": model.config.reward_std,
    }
    if params.require_above_chance and figures["pair_accuracy"] <= 0.5:
        raise Problem(
            f"reward: held-out pairs are ordered right in {figures['pair_accuracy']:.3f} of "
            f"{figures['heldout_pairs']} cases, no better than a coin; the model is not written. Look at "
            "reports/preferences.json (do the annotators agree?), then at reward.learning_rate and reward.epochs"
        )
    save_model(model, tokenizer, "models/reward")
    stage.report(figures)
    curves(
        Path("reports/plots/reward"),
        history,
        "step",
        {"Loss": ["loss"], "Pair accuracy in training": ["accuracy"]},
    )
    reliability(Path("reports/plots/reward_reliability"), bins)
    checkpoint.clear()


def _train(
    model: Any, tokenizer: Any, groups: list[Group], params: Params, stage: Stage, checkpoint: Checkpoint
) -> list[dict[str, float]]:
    """All answers of a prompt in one step, each with one forward pass. A killed run goes on in the same bytes."""
    sequences = {g.prompt_id: encoded(tokenizer, g, model.config.max_position_embeddings) for g in groups}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
    )
    batches = [
        batch
        for epoch in range(params.epochs)
        for batch in _shuffled(groups, params.prompts_per_step, stage.seed_of(epoch))
    ]
    history: list[dict[str, float]] = []
    if saved := checkpoint.load():
        _, tensors, history = saved
        model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        restore_optimizer(optimizer, tensors)
        print(f"reward: going on after step {len(history)}")
    for step, batch in enumerate(batches[len(history) :], len(history) + 1):
        places, ranks = (x.to(model.device) for x in batch_ranks(batch))
        scores = rewards(
            model, [ids for g in batch for ids in sequences[g.prompt_id]], tokenizer.pad_token_id
        )[places]
        loss = ranking_loss(
            scores, ranks, ties=params.ties, tie_parameter=params.tie_parameter, centring=params.centring
        )
        if not torch.isfinite(loss):
            rows = ", ".join(row for g in batch for row in g.rows[:1])
            raise Problem(
                f"reward: the loss of step {step} is {loss.item()}; no step was taken. Lower "
                f"reward.learning_rate, or look at the rankings {rows[:200]}"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), params.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * _schedule(step, len(batches), params.warmup_share)
        optimizer.step()
        row, better, worse, is_tie = pairs(ranks)
        margins = (scores[row, better] - scores[row, worse])[~is_tie]
        accuracy = (margins > 0).double().mean().item() if len(margins) else 0.5
        history.append({"step": step, "loss": loss.item(), "accuracy": accuracy})
        stage.progress(step, len(batches), loss=loss.item(), accuracy=accuracy)
        if step % params.checkpoint_every == 0 and step < len(batches):
            weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
            checkpoint.save(step, {**weights, **optimizer_tensors(optimizer)}, history)
    return history


def _shuffled(groups: list[Group], size: int, seed: int) -> list[list[Group]]:
    order = groups.copy()
    random.Random(seed).shuffle(order)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Factor on the learning rate at step 1..steps: linear warm-up, then a cosine to 0."""
    warmup = max(1, round(steps * warmup_share))
    return (
        step / warmup
        if step <= warmup
        else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1))) / 2
    )


def _score_all(model: Any, tokenizer: Any, groups: list[Group], batch_size: int) -> list[list[float]]:
    """Raw rewards of every answer of every group."""
    sequences = [encoded(tokenizer, group, model.config.max_position_embeddings) for group in groups]
    flat = iter(raw_scores(model, [ids for of_group in sequences for ids in of_group], batch_size=batch_size))
    return [[next(flat) for _ in of_group] for of_group in sequences]


def _heldout_figures(
    model: Any, tokenizer: Any, heldout: Rows, params: Params, stage: Stage
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Accuracy on held-out pairs from every side, and the bins of the reliability plot."""
    groups = grouped(heldout)
    raw = _score_all(model, tokenizer, groups, params.batch_size)
    reward_of = {
        (g.prompt_id, a): r
        for g, of_group in zip(groups, raw, strict=True)
        for a, r in zip(g.answers, of_group, strict=True)
    }
    votes = verdicts({**row, "prompt_id": prompt_id(row["prompt"])} for row in heldout)
    single = calibration.judged_pairs(votes, reward_of)
    panel = calibration.judged_pairs(votes, reward_of, panel=True)
    if not single:
        raise Problem(f"{HELDOUT}: no pair of answers is ordered (all tied); a reward model cannot be judged")
    overall = mean_interval(
        [p.hit for p in single],
        seed=stage.seed_of("bootstrap"),
        groups=[p.prompt_id for p in single],
        bounds=(0, 1),
    )
    agreement = agreement_with_others(votes)
    sure = calibration.preference(params.ties, params.tie_parameter)([abs(p.margin) for p in single])
    bins = calibration.reliability_bins(sure, [p.hit for p in single])
    unanimous = {
        pair: v
        for pair, v in votes.items()
        if len(v) > 1 and abs(sum(v.values())) == len(v) and majority(v.values())
    }
    figures: dict[str, Any] = {
        "heldout_prompts": len(groups),
        "heldout_pairs": len(single),
        "pair_accuracy": overall.mean,
        "pair_accuracy_low": overall.low,
        "pair_accuracy_high": overall.high,
        "accuracy_majority": calibration.accuracy(panel),
        "accuracy_unanimous": calibration.accuracy(
            calibration.judged_pairs(unanimous, reward_of, panel=True)
        ),
        **{
            f"accuracy_{name}": calibration.accuracy([p for p in single if p.annotator == name])
            for name in sorted({p.annotator for p in single})
        },
        **{
            f"accuracy_margin_{place}": share
            for place, (_, share) in enumerate(calibration.by_margin(single), 1)
        },
        "noise_ceiling": sum(s for s, _ in agreement.values()) / len(agreement) if agreement else None,
        "accuracy_longer": calibration.length_accuracy(single),
        "accuracy_longer_is_worse": calibration.accuracy([p for p in single if p.longer_by < 0]),
        "ece": calibration.calibration_error(bins),
    }
    return {name: value for name, value in figures.items() if value is not None}, bins


if __name__ == "__main__":
    main(__file__, Params, run)
