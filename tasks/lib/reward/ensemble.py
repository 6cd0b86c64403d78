"""An ensemble of reward heads on one body, and how far its members disagree.

Another head costs a vector, another model a whole training: heads share every pass. They differ by how they begin
and by the prompts they learn from, a bootstrap sample for each (Osband et al., arXiv 1602.04621). On one body they
know less of what they do not know than models apart, above all models pre-trained apart (Eisenstein et al., arXiv
2312.09244; Gleave and Irving, arXiv 2203.07472): `ensemble_figures` measures what their disagreement is worth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.reward.calibration import Judged, accuracy
from tasks.lib.reward.reward_model import Group, group_heads, load_reward, room_of, tokenized
from tasks.lib.stage import Problem


def bootstrap_counts(prompt_key: str, heads: int, seed: int) -> list[int]:
    """How often a prompt counts for each head: Poisson(1), a bootstrap sample without knowing their number
    (Oza and Russell, AISTATS 2001). One head alone learns from all prompts."""
    if heads == 1:
        return [1]
    counts = []
    for head in range(heads):
        draw, count = random.Random(f"{seed}/{head}/{prompt_key}"), 0
        product = draw.random()
        while product > math.exp(-1):
            product, count = product * draw.random(), count + 1
        counts.append(count)
    return counts


def disagreement(of_prompt: Tensor, temperature: float = 1.0) -> float:
    """How far the heads are apart about a prompt's answers: raw rewards (K, heads) -> 0 to 0.5.

    The standard deviation over the heads of P(a before b) = sigmoid((r_a - r_b) / T), mean over pairs: what
    Christiano et al. (arXiv 1706.03741, section 2.2.4) choose questions to people by.
    """
    first, second = torch.triu_indices(len(of_prompt), len(of_prompt), offset=1)
    probability = torch.sigmoid((of_prompt[first] - of_prompt[second]).double() / temperature)
    return float(probability.std(1, correction=0).mean()) if len(first) else 0.0


def ensemble_figures(
    pairs: Sequence[Judged], by_head: Sequence[Sequence[Judged]], apart: Sequence[float]
) -> dict[str, float]:
    """What the heads are worth apart, and whether they know where they are wrong.

    `pairs`: judged by the mean reward; `by_head`: the same pairs by each head; `apart`: disagreement of
    every prompt.
    disagreement: mean over prompts; accuracy_head_mean: of one head alone; accuracy_agreed and
    accuracy_contested: of the mean reward, where all heads order the pair alike and where they do not.
    """
    if len(by_head) == 1:
        return {}
    signs = [{pair.margin > 0 for pair in of_pair} for of_pair in zip(*by_head, strict=True)]
    parts = {
        "agreed": [pair for pair, said in zip(pairs, signs, strict=True) if len(said) == 1],
        "contested": [pair for pair, said in zip(pairs, signs, strict=True) if len(said) > 1],
    }
    found = {
        "disagreement": sum(apart) / len(apart),
        "accuracy_head_mean": sum(accuracy(of_head) or 0.0 for of_head in by_head) / len(by_head),
        "contested_share": len(parts["contested"]) / len(pairs),
    }
    shares = {f"accuracy_{name}": accuracy(part) for name, part in parts.items()}
    return found | {name: share for name, share in shares.items() if share is not None}


def load_ensemble(folder: Path) -> tuple[Any, Any]:
    """The reward model of a folder and its tokenizer. Problem when it has one head, which cannot disagree."""
    model = load_reward(folder)
    if getattr(model.config, "reward_heads", 1) == 1:
        raise Problem(f"{folder}: a reward model of one head; train one with reward.heads above 1")
    return model, load_tokenizer(folder)


def disputes(model: Any, tokenizer: Any, rows: list[dict[str, Any]], *, batch_size: int) -> list[tuple[int, float]]:
    """(place, disagreement) of the rows {prompt, answers} that fit the reward model."""
    groups = [Group(str(place), row["prompt"], row["answers"]) for place, row in enumerate(rows)]
    groups = tokenized(tokenizer, groups, room_of(model))
    by_head = group_heads(model, groups, batch_size=batch_size)
    scale = getattr(model.config, "reward_temperature", 1.0)
    return [(int(g.prompt_key), disagreement(of, scale)) for g, of in zip(groups, by_head, strict=True)]
