"""An ensemble of reward heads on one body, and how far its members disagree.

Another head costs a vector, another model a whole training: heads share every pass. They differ by how they begin
and by the prompts they learn from, a bootstrap sample for each (Osband et al., arXiv 1602.04621). Heads on one body
notice less of what they do not know than separate models do, above all models that were pre-trained separately
(Eisenstein et al., arXiv 2312.09244; Gleave and Irving, arXiv 2203.07472): `ensemble_figures` measures what their
disagreement is worth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.lib.data.rows import Row
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.reward.accuracy import OrderedPair, accuracy
from tasks.lib.reward.groups import Group, group_heads, tokenize
from tasks.lib.reward.reward_model import load_reward, room_of
from tasks.lib.stage import Problem


def bootstrap_counts(prompt_key: str, heads: int, seed: int) -> list[int]:
    """How often a prompt counts for each head: Poisson(1), a bootstrap sample without knowing their number
    (Oza and Russell, AISTATS 2001). One head alone learns from all prompts."""
    if heads == 1:
        return [1]
    return [_poisson(random.Random(f"{seed}/{head}/{prompt_key}")) for head in range(heads)]


def _poisson(draw: random.Random) -> int:
    """A draw from Poisson(1): how many uniform numbers can be multiplied before the product falls to 1/e (Knuth)."""
    count = 0
    product = draw.random()
    while product > math.exp(-1):
        product *= draw.random()
        count += 1
    return count


def disagreement(by_head: Tensor, temperature: float = 1.0) -> float:
    """How far the heads are apart about a prompt's answers: raw rewards (K, heads) -> 0 to 0.5.

    The standard deviation over the heads of P(a before b) = sigmoid((r_a - r_b) / T), mean over pairs: what
    Christiano et al. (arXiv 1706.03741, section 2.2.4) choose questions to people by. One answer: 0.
    """
    answers = len(by_head)
    if answers < 2:
        return 0.0
    first, second = torch.triu_indices(answers, answers, offset=1)
    difference = by_head[first] - by_head[second]  # (pairs, heads)
    probability = torch.sigmoid(difference.double() / temperature)
    return float(probability.std(1, correction=0).mean())


def ensemble_figures(
    pairs: Sequence[OrderedPair], by_head: Sequence[Sequence[OrderedPair]], disagreements: Sequence[float]
) -> dict[str, float]:
    """What the heads are worth apart, and whether they know where they are wrong. Of one head there is nothing to say.

    `pairs`: with the mean reward; `by_head`: the same pairs with the reward of each head; `disagreements`: of every
    prompt.
    disagreement: mean over prompts; accuracy_head_mean: of one head alone; accuracy_agreed and
    accuracy_contested: of the mean reward, where all heads order the pair alike and where they do not.
    """
    if len(by_head) == 1:
        return {}
    agreed, contested = [], []
    for pair, *of_heads in zip(pairs, *by_head, strict=True):
        signs = {of_head.margin > 0 for of_head in of_heads}
        if len(signs) == 1:
            agreed.append(pair)
        else:
            contested.append(pair)
    head_accuracies = [accuracy(of_head) or 0.0 for of_head in by_head]
    figures = {
        "disagreement": sum(disagreements) / len(disagreements),
        "accuracy_head_mean": sum(head_accuracies) / len(by_head),
        "contested_share": len(contested) / len(pairs),
    }
    for name, part in (("accuracy_agreed", agreed), ("accuracy_contested", contested)):
        share = accuracy(part)
        if share is not None:
            figures[name] = share
    return figures


def load_ensemble(folder: Path) -> tuple[Any, Any]:
    """The reward model of a folder and its tokenizer. Problem when it has one head, which cannot disagree."""
    model = load_reward(folder)
    if getattr(model.config, "reward_heads", 1) == 1:
        raise Problem(f"{folder}: the reward model has one head; train one with reward.heads above 1")
    return model, load_tokenizer(folder)


def disagreements(model: Any, tokenizer: Any, rows: Sequence[Row], *, batch_size: int) -> dict[int, float]:
    """Place among the rows {prompt, answers} -> disagreement about it, of the rows that fit the reward model."""
    groups = []
    for place, row in enumerate(rows):
        groups.append(Group(str(place), row["prompt"], row["answers"]))
    fitting = tokenize(tokenizer, groups, room_of(model))
    heads_of = group_heads(model, fitting, batch_size=batch_size)
    temperature = getattr(model.config, "reward_temperature", 1.0)
    by_place = {}
    for group, by_head in zip(fitting, heads_of, strict=True):
        by_place[int(group.prompt_key)] = disagreement(by_head, temperature)
    return by_place
