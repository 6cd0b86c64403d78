"""Scores of answers: exact match, rank classification, what guessing would give, KL from the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.lib.evaluation.judge import Panel
from tasks.lib.policy.logprobs import answer_logprobs

Row = Mapping[str, Any]


def exact_match(answer: str, label: str, panel: Panel | None = None) -> bool:
    """True if the answer is the label, outer white space and the panel's closing aside. Case counts."""
    return panel.is_right(label, answer) if panel else answer.strip() == label.strip()


def rank_choices(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    choices: Sequence[Sequence[list[int]]],
    *,
    batch_size: int,
) -> list[int]:
    """Rank classification: per prompt the index of the choice with the highest log-probability as an answer.

    The log-probabilities of a choice's tokens, EOS included, are summed, not averaged: the sum is the
    probability that the model gives exactly this answer, and T0 does the same (Sanh et al. 2022, arXiv
    2110.08207, section 4). A mean over tokens would favour long choices, whose later tokens are easy.
    Of equal sums the earlier choice.
    """
    repeated = [prompt for prompt, mine in zip(prompts, choices, strict=True) for _ in mine]
    answers = [choice for mine in choices for choice in mine]
    sums = iter(
        [float(each.sum()) for each in answer_logprobs(model, repeated, answers, batch_size=batch_size)]
    )
    return [int(np.argmax([next(sums) for _ in mine])) for mine in choices]


def sequence_kl(mine: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> np.ndarray:
    """Per answer (N,) the summed `log policy - log reference`, in nats per sequence.

    `mine` and `reference` hold per answer the log-probabilities (T,) of its tokens. Of answers sampled from
    the policy at temperature 1 the mean is an unbiased estimate of KL(policy || reference) over whole answers
    (k1 of Schulman 2020, "Approximating KL divergence"); single values may be negative. Of greedy answers it
    would not be one.
    """
    pairs = zip(mine, reference, strict=True)
    return np.array([float((policy.double() - other.double()).sum()) for policy, other in pairs])


def chance(rows: Sequence[Row]) -> np.ndarray:
    """Per row (N,) the exact match that guessing among the row's choices expects; 0 without choices."""
    return np.array([1.0 / len(row["choices"]) if row["choices"] else 0.0 for row in rows])


def majority(rows: Sequence[Row]) -> np.ndarray:
    """Per row (N,) whether the best constant answer of its task, known with hindsight, is right."""
    counts = Counter((row["task"], row["label"].strip()) for row in rows)
    best: dict[str, str] = {}
    for (task, label), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        best.setdefault(task, label)
    return np.array([float(best[row["task"]] == row["label"].strip()) for row in rows])
