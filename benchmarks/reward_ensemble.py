"""What an ensemble of reward heads is worth: held-out accuracy, and whether disagreement finds the wrong pairs.

    python -m benchmarks.reward_ensemble WORKSPACE [--heads 4] [--seeds 1 2 3]

WORKSPACE has been through the line as far as `preferences`; nothing is written in it. For every seed one head and an
ensemble on one body are trained as the `reward` section of its params.yaml says; the single heads of all seeds
together are an ensemble of models, at as many times the cost. Each is judged on the held-out pairs:

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

from tasks.lib.annotation.agreement import verdicts, with_prompt_keys
from tasks.lib.data.rows import read_parquet
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.reward.calibration import judged_pairs, temperature
from tasks.lib.reward.ensemble import disagreement
from tasks.lib.reward.reward_model import Group, from_policy, group_heads, grouped, tokenized
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


def told(name: str, rows: list[dict[str, Any]], groups: list[Group], members: list[Tensor]) -> None:
    """One line; members: raw rewards (K, M) of every group."""
    votes = verdicts(with_prompt_keys(rows))
    reward_of = {
        (group.prompt_key, answer): (values.mean().item(), values)
        for group, of_group in zip(groups, members, strict=True)
        for answer, values in zip(group.answers, of_group, strict=True)
    }
    mean_of = {key: mean for key, (mean, _) in reward_of.items()}
    judged = judged_pairs(votes, mean_of)
    scale = temperature([pair.margin for pair in judged])
    differences = [
        reward_of[prompt, a][1] - reward_of[prompt, b][1]
        for (prompt, a, b), said in votes.items()
        for vote in said.values()
        if vote
    ]
    apart = torch.sigmoid(torch.stack(differences).double() / scale).std(1, correction=0).numpy()
    is_wrong = np.array([pair.hit < 0.5 for pair in judged])
    margin = np.array([-abs(pair.margin) for pair in judged])
    line = f"{name:28} accuracy {1 - is_wrong.mean():.3f}   margin {auroc(margin, is_wrong):.3f}"
    if members[0].shape[1] > 1:
        of_prompt = {g.prompt_key: disagreement(m, scale) for g, m in zip(groups, members, strict=True)}
        asked = set(sorted(of_prompt, key=lambda key: -of_prompt[key])[: len(of_prompt) // 4])
        hardest = fmean(pair.hit for pair in judged if pair.prompt_key in asked)
        line += f"   disagreement {auroc(apart, is_wrong):.3f}   hardest {hardest:.3f}"
    print(line, flush=True)


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
    train_rows, rows = (
        read_parquet(options.workspace / f"data/preferences/{split}.parquet") for split in ("train", "heldout")
    )
    groups, heldout = (tokenized(tokenizer, grouped(some), None) for some in (train_rows, rows))
    print(f"{len(groups)} prompts to train on, {len(heldout)} held out", flush=True)
    alone = []
    for seed in options.seeds:
        for heads in (1, options.heads):
            begun = time.process_time()
            model = trained(options.workspace, groups, how, heads, seed)
            seconds = time.process_time() - begun
            members = group_heads(model, heldout, batch_size=256)
            told(f"seed {seed}, {heads} heads, {seconds:.0f} CPU s", rows, heldout, members)
            if heads == 1:
                alone.append(members)
    together = [torch.cat([m / torch.cat(of_one).std() for m, of_one in zip(ms, alone, strict=True)], 1)
                for ms in zip(*alone, strict=True)]  # fmt: skip
    told(f"the {len(alone)} models of one head", rows, heldout, together)


if __name__ == "__main__":
    main()
