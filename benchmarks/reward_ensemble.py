"""What an ensemble of reward heads is worth: held-out accuracy, and whether disagreement finds the wrong pairs.

    python -m benchmarks.reward_ensemble WORKSPACE [--heads 4] [--seeds 1 2 3]

WORKSPACE has been through the pipeline as far as `preferences`; nothing is written in it. For every seed one head and
an ensemble on one body are trained as the `reward` section of its params.yaml says; the single heads of all seeds
together are an ensemble of models, at as many times the cost. Each is compared with the annotators on held-out pairs:

accuracy     share of pairs ordered as an annotator did
disagreement AUROC of the standard deviation over the members of a pair's probability, as a sign that the pair is wrong
margin       the same of the least distance of the mean rewards, which one head has too: what disagreement has to beat
hardest      accuracy on the quarter of the prompts that `disagreement` would have asked about first
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.lib.annotation.agreement import Verdicts, verdicts, with_prompt_keys
from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.reward.accuracy import ordered_pairs
from tasks.lib.reward.calibration import temperature
from tasks.lib.reward.ensemble import disagreement
from tasks.lib.reward.groups import Group, group_heads, grouped, tokenize
from tasks.lib.reward.reward_model import from_policy
from tasks.lib.reward.reward_training import train
from tasks.lib.settings.reward import Training
from tasks.lib.stage import read_yaml
from tasks.lib.training.checkpoints import Checkpoint


def trained(workspace: Path, groups: list[Group], how: Training, heads: int, seed: int) -> Any:
    model = from_policy(load_policy(workspace / "models/sft"), seed, heads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder), {})
        train(model, groups, how, seed=seed, checkpoint=checkpoint, progress=lambda *_, **__: None)
    return model


def auroc(sign: np.ndarray, is_wrong: np.ndarray) -> float:
    """The probability that a wrong pair has more of the sign than a right one; equal ones count a half."""
    wrong, right = sign[is_wrong, None], sign[None, ~is_wrong]
    return float(((wrong > right) + (wrong == right) / 2).mean())


def print_figures(name: str, rows: list[Row], groups: list[Group], members: list[Tensor]) -> None:
    """One line of figures; members: raw rewards (K, M) of the K answers of every group by M members."""
    votes = verdicts(with_prompt_keys(rows))
    rewards_of: dict[tuple[str, str], Tensor] = {}  # (M,) by prompt_key and answer
    for group, of_group in zip(groups, members, strict=True):
        for answer, rewards in zip(group.answers, of_group, strict=True):
            rewards_of[group.prompt_key, answer] = rewards
    pairs = ordered_pairs(votes, {key: rewards.mean().item() for key, rewards in rewards_of.items()})
    is_wrong = np.array([pair.hit < 0.5 for pair in pairs])
    margin = np.array([-abs(pair.margin) for pair in pairs])
    line = f"{name:28} accuracy {1 - is_wrong.mean():.3f}   margin {auroc(margin, is_wrong):.3f}"
    if members[0].shape[1] > 1:
        scale = temperature([pair.margin for pair in pairs])
        sign = auroc(pair_disagreements(votes, rewards_of, scale), is_wrong)
        asked = most_disputed_quarter(groups, members, scale)
        hardest = fmean(pair.hit for pair in pairs if pair.prompt_key in asked)
        line += f"   disagreement {sign:.3f}   hardest {hardest:.3f}"
    print(line, flush=True)


def pair_disagreements(votes: Verdicts, rewards_of: dict[tuple[str, str], Tensor], scale: float) -> np.ndarray:
    """The standard deviation over the members of the probability of every ordered pair, in their order."""
    differences = []
    for (prompt, first, second), vote_of in votes.items():
        for vote in vote_of.values():
            if vote != 0:
                differences.append(rewards_of[prompt, first] - rewards_of[prompt, second])
    return torch.sigmoid(torch.stack(differences).double() / scale).std(1, correction=0).numpy()


def most_disputed_quarter(groups: list[Group], members: list[Tensor], scale: float) -> set[str]:
    """The keys of the quarter of the prompts that the members disagree about most."""
    of_prompt = {}
    for group, of_group in zip(groups, members, strict=True):
        of_prompt[group.prompt_key] = disagreement(of_group, scale)
    most_first = sorted(of_prompt, key=lambda key: -of_prompt[key])
    return set(most_first[: len(most_first) // 4])


def joined(models: list[list[Tensor]]) -> list[Tensor]:
    """Raw rewards (K, 1) of every group by several models as those of one ensemble (K, M), on one scale."""
    scales = [torch.cat(of_model).std() for of_model in models]
    together = []
    for of_group in zip(*models, strict=True):
        scaled = [rewards / scale for rewards, scale in zip(of_group, scales, strict=True)]
        together.append(torch.cat(scaled, 1))
    return together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    section = read_yaml(options.workspace / "params.yaml")["reward"]
    how = Training(**{**section["training"], "attributes": []})
    tokenizer = load_tokenizer(options.workspace / "models/sft")
    preferences = options.workspace / "data/preferences"
    rows = read_parquet(preferences / "heldout.parquet")
    groups = tokenize(tokenizer, grouped(read_parquet(preferences / "train.parquet")), None)
    heldout = tokenize(tokenizer, grouped(rows), None)
    print(f"{len(groups)} prompts to train on, {len(heldout)} held out", flush=True)
    alone = []
    for seed in options.seeds:
        for heads in (1, options.heads):
            begun = time.process_time()
            model = trained(options.workspace, groups, how, heads, seed)
            seconds = time.process_time() - begun
            members = group_heads(model, heldout, batch_size=256)
            print_figures(f"seed {seed}, {heads} heads, {seconds:.0f} CPU s", rows, heldout, members)
            if heads == 1:
                alone.append(members)
    print_figures(f"the {len(alone)} models of one head", rows, heldout, joined(alone))


if __name__ == "__main__":
    main()
