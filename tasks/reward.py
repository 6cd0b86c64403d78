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
from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.intervals import mean_interval
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.plots import calibration_diagram, curves
from tasks.lib.reward import calibration
from tasks.lib.reward.baselines import bag_of_words
from tasks.lib.reward.heldout_report import accuracy_by_source, judge
from tasks.lib.reward.reward_adapters import adapt, merge
from tasks.lib.reward.reward_attributes import Rated, attribute_figures, rated_answers
from tasks.lib.reward.reward_model import (
    Group,
    attributes_of,
    from_policy,
    group_heads,
    grouped,
    normalise,
    raw_outputs,
    room_of,
    tokenized,
)
from tasks.lib.reward.reward_training import train
from tasks.lib.settings.reward import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.checkpoints import Checkpoint

CANDIDATES = Path("data/candidates/candidates.parquet")
TRAIN, HELDOUT = Path("data/preferences/train.parquet"), Path("data/preferences/heldout.parquet")
RATINGS = {split: Path(f"data/preferences/ratings_{split}.parquet") for split in ("train", "heldout")}
BENCHMARKS = Path("data/preferences/benchmarks")
BESIDE = {
    "noise_ceiling": "what one annotator reaches against the majority of the others",
    "best_possible": "what no ordering can exceed: annotators contradict each other",
    "accuracy_bag_of_words": "the words of the answer alone, without the prompt",
    "accuracy_longer": "the longer answer is better",
}


def run(params: Params, stage: Stage) -> None:
    train_rows, heldout_rows = read_parquet(TRAIN), read_parquet(HELDOUT)
    tokenizer = load_tokenizer("models/sft")
    model = from_policy(load_policy("models/sft"), stage.seed_of("head"), params.heads, params.training.attributes)
    adapt(model, params.method, params.lora)
    groups = _fitting(model, tokenizer, grouped(train_rows), TRAIN)
    checkpoint = Checkpoint(stage.checkpoints, _fingerprint(params, stage.seed))
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

    heldout = _fitting(model, tokenizer, grouped(heldout_rows), HELDOUT)
    by_head = group_heads(model, heldout, batch_size=params.batch_size)
    figures, bins = judge(
        heldout_rows,
        heldout,
        by_head,
        bag_of_words(groups, heldout),
        (params.training.ties, params.training.tie_parameter),
        lambda values, prompts, word, bounds: mean_interval(
            values, seed=stage.seed_of(word), groups=prompts, bounds=bounds
        ),
    )
    if params.require_above_chance and figures["pair_accuracy"] <= 0.5:
        raise Problem(
            f"reward: held-out pairs are ordered right in {figures['pair_accuracy']:.3f} of "
            f"{figures['heldout_pairs']} cases, no better than a coin; the model is not written. Do the "
            "annotators agree (reports/preferences.json)? Then try reward.training.learning_rate and epochs"
        )
    model.config.reward_temperature = figures["temperature"]
    save_model(model, tokenizer, "models/reward")

    mean, std = model.config.reward_mean, model.config.reward_std
    scores = [[(raw - mean) / std for raw in of_group.mean(-1).tolist()] for of_group in by_head]
    stage.report(
        {
            **figures,
            **calibration.score_figures(
                [reward for of_group in scores for reward in of_group],
                [answer for group in heldout for answer in group.answers],
            ),
            "steps": len(history),
            "train_prompts": len(groups),
            "train_rankings": len(train_rows),
            "train_loss_first": history[0]["loss"],
            "train_loss_last": history[-1]["loss"],
            "reward_mean": mean,
            "reward_std": std,
            **_attribute_figures(model, tokenizer, params),
            **_benchmarks(model, tokenizer, params.batch_size),
        }
    )
    _tell(figures)
    _draw(history, bins, calibration.histogram(scores, [_is_best(group) for group in heldout]))
    checkpoint.clear()


def _fingerprint(params: Params, seed: int) -> dict[str, Any]:
    """What decides the weights: a checkpoint of anything else is of another run."""
    data = [TRAIN, *([RATINGS["train"]] if params.training.attributes else [])]
    return {
        **params.training.model_dump(exclude={"checkpoint_every"}),
        **params.model_dump(include={"heads", "method", "lora"}),
        "seed": seed,
        "models/sft": weights_hash("models/sft"),
        **{str(file): file_hash(file) for file in data},
    }


def _fitting(model: Any, tokenizer: Any, groups: list[Group], path: Path) -> list[Group]:
    """The groups that fit the model, tokenized; how many do not is said. Problem when none does."""
    room = room_of(model)
    fitting = tokenized(tokenizer, groups, room)
    if len(fitting) < len(groups):
        print(f"reward: {path}: {len(groups) - len(fitting)} prompts left out, longer than {room} tokens")
    if not fitting:
        raise Problem(f"{path}: no prompt with its answers fits the model's {room} tokens; use shorter ones")
    return fitting


def _rated(model: Any, tokenizer: Any, split: str, names: list[str]) -> list[Rated]:
    """The rated answers of a split; Problem when an attribute has none."""
    if not names:
        return []
    path = RATINGS[split]
    if not path.is_file():
        raise Problem(f"reward.training.attributes: {path} does not exist; name them in preferences.attributes")
    room = room_of(model)
    found = rated_answers(read_parquet(path), names, tokenizer, room)
    for place, name in enumerate(names):
        if all(math.isnan(answer.values[place]) for answer in found):
            raise Problem(f"reward.training.attributes: {path} has no answer of {room} tokens rated by {name}")
    return found


def _attribute_figures(model: Any, tokenizer: Any, params: Params) -> dict[str, float]:
    if not (heldout := _rated(model, tokenizer, "heldout", params.training.attributes)):
        return {}
    found = raw_outputs(model, [answer.sequence for answer in heldout], batch_size=params.batch_size)
    given = torch.tensor([answer.values for answer in heldout])
    return attribute_figures(params.training.attributes, attributes_of(model, found), given)


def _benchmarks(model: Any, tokenizer: Any, batch_size: int) -> dict[str, float]:
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
            figures |= {f"{name}_{'_'.join(subset.split())}": share for subset, (share, _) in shares.items()}
        print(f"reward: {file}: {figures[name]:.3f} of {pairs} pairs ordered right")
    return figures


def _is_best(group: Group) -> list[bool]:
    """Whether somebody ranked the answer first, per answer."""
    return [any(ranks[place] == 0 for ranks in group.ranks) for place in range(len(group.answers))]


def _draw(history: list[dict[str, float]], bins: list[dict[str, float]], scores: list[dict[str, float]]) -> None:
    panels = {"Loss": ["loss"], "Pair accuracy in training": ["accuracy"]}
    curves(Path("reports/plots/reward"), history, "step", panels)
    calibration_diagram(Path("reports/plots/reward_reliability"), bins)
    panels = {"Share of held-out answers by reward": ["best", "others"]}
    curves(Path("reports/plots/reward_scores"), scores, "reward", panels)


def _tell(figures: dict[str, Any]) -> None:
    """The comparison that decides whether the reward model is worth something, in the run's output."""
    accuracy = f"[{figures['pair_accuracy_low']:.3f}, {figures['pair_accuracy_high']:.3f}]"
    print(f"reward: held-out pairs ordered right {figures['pair_accuracy']:.3f} {accuracy}; against")
    for name, meaning in BESIDE.items():
        if name in figures:
            print(f"reward:   {figures[name]:.3f}  {meaning}")


if __name__ == "__main__":
    main(__file__, Params, run)
