"""Scores of answers: exact match, measures, rank classification, what guessing would give, KL from the reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from tasks.lib.evaluation.measures import score
from tasks.lib.evaluation.panel import Panel
from tasks.lib.models.batches import batches_by_length, left_pad, position_ids, right_pad
from tasks.lib.models.logprobs import token_logprobs
from tasks.lib.models.pass_size import cached_tokens, passes_within, scoring_tokens

Row = Mapping[str, Any]
CONSTANTS = 20  # constant answers of a task that are tried


def exact_match(answer: str, label: str, panel: Panel | None = None) -> bool:
    """True if the answer is the label, outer white space and the panel's closing aside. Case counts."""
    return panel.is_right(label, answer) if panel else answer.strip() == label.strip()


def content_score(row: Row, answer: str, panel: Panel | None = None) -> float:
    """How right an answer to a row is, 0 to 1, by the measure of the row's task; the panel's closing aside."""
    return panel.score(row, answer) if panel else score(row["measure"], row["label"], answer, row["choices"])


def answer_scores(rows: Sequence[Row], answers: Sequence[str], panel: Panel | None) -> dict[str, list[float]]:
    """Per answer (N,) `exact_match` with its row's label.

    Where a row has another measure than `exact` also `score`, by the measure of each row; with a panel also `closing`
    (it is there) and `gold` (utility).
    """
    pairs = list(zip(rows, answers, strict=True))
    scores = {"exact_match": [float(exact_match(answer, row["label"], panel)) for row, answer in pairs]}
    if any(row["measure"] != "exact" for row in rows):
        scores["score"] = [content_score(row, answer, panel) for row, answer in pairs]
    if panel:
        scores["closing"] = [float(panel.has_closing(answer)) for _, answer in pairs]
        scores["gold"] = [panel.utility(row, answer) for row, answer in pairs]
    return scores


def answer_figures(rows: Sequence[Row], answers: Sequence[str], panel: Panel | None) -> dict[str, float]:
    """The means of `answer_scores` over N > 0 answers."""
    figures = {}
    for name, scores in answer_scores(rows, answers, panel).items():
        figures[name] = sum(scores) / len(scores)
    return figures


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
    best = [0] * len(prompts)
    for batch in _choice_batches(model, prompts, choices, batch_size):
        logprobs = _choice_logprobs(model, [prompts[i] for i in batch], [choices[i] for i in batch]).tolist()
        start = 0
        for i in batch:
            end = start + len(choices[i])
            best[i] = int(np.argmax(logprobs[start:end]))
            start = end
    return best


def _choice_batches(
    model: PreTrainedModel, prompts: Sequence[list[int]], choices: Sequence[Sequence[list[int]]], batch_size: int
) -> list[list[int]]:
    """The numbers of the prompts in batches of like length, the longest first. The prompt's keys and values, which
    every choice gets, and the logits of all choices fit in memory."""
    width = max((max(map(len, of_prompt)) for of_prompt in choices), default=0)  # of a choice
    logits = width * cached_tokens(model) // scoring_tokens(model, logits=True)  # as many tokens of the cache

    def cached(rows: Sequence[int]) -> int:
        longest = max(len(prompts[row]) for row in rows) + width
        return sum(len(choices[row]) for row in rows) * (longest + logits)

    batches: list[list[int]] = []
    for batch in batches_by_length([len(prompt) for prompt in prompts], batch_size, longest_first=True):
        batches += passes_within(cached_tokens(model), batch, cached)
    return batches


@torch.no_grad()
def _choice_logprobs(
    model: PreTrainedModel, prompts: list[list[int]], choices: list[Sequence[list[int]]]
) -> torch.Tensor:
    """The summed log-probability of every choice of every prompt, in order: (C,) for C choices of B prompts.

    A prompt is read once: its keys and values serve all its choices, which are a few tokens each.
    """
    device = model.device
    answers: list[list[int]] = []
    prompt_of: list[int] = []
    for place, of_prompt in enumerate(choices):
        answers += of_prompt
        prompt_of += [place] * len(of_prompt)
    row_of = torch.tensor(prompt_of, device=device)  # (C,) the row of each choice's prompt
    prompt_ids, is_prompt = (each.to(device) for each in left_pad(prompts, 0))  # (B, P)
    answer_ids, is_answer = (each.to(device) for each in right_pad(answers, 0))  # (C, A)

    # the last position of a prompt predicts the first token of its choices
    output = model(
        input_ids=prompt_ids,
        attention_mask=is_prompt.long(),
        position_ids=position_ids(is_prompt),
        use_cache=True,
        logits_to_keep=1,
    )
    first = token_logprobs(output.logits[row_of], answer_ids[:, :1])[:, 0]
    if answer_ids.shape[1] == 1:
        return first.cpu()

    # every choice continues with the keys and values of its prompt
    output.past_key_values.batch_select_indices(row_of)
    is_token = torch.cat([is_prompt[row_of], is_answer[:, :-1]], dim=1)  # (C, P + A - 1)
    logits = model(
        input_ids=answer_ids[:, :-1],
        attention_mask=is_token.long(),
        position_ids=position_ids(is_token)[:, prompt_ids.shape[1] :],
        past_key_values=output.past_key_values,
    ).logits
    later = token_logprobs(logits, answer_ids[:, 1:]) * is_answer[:, 1:]
    return (first + later.sum(dim=1)).cpu()


def sequence_kl(policy: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> np.ndarray:
    """Per answer (N,) the summed `log policy - log reference`, in nats per sequence.

    Both hold per answer the log-probabilities (T,) of its tokens. Of answers sampled from the policy at temperature 1
    the mean is an unbiased estimate of KL(policy || reference) over whole answers (k1 of Schulman 2020, "Approximating
    KL divergence"); single values may be negative. Of greedy answers it would not be one.
    """
    log_ratios: list[float] = []
    for policy_logprobs, reference_logprobs in zip(policy, reference, strict=True):
        log_ratios.append(float((policy_logprobs.double() - reference_logprobs.double()).sum()))
    return np.array(log_ratios)


def chance(rows: Sequence[Row]) -> np.ndarray:
    """Per row (N,) the exact match that guessing among the row's choices expects; 0 without choices."""
    return np.array([1.0 / len(row["choices"]) if row["choices"] else 0.0 for row in rows])


def best_constant(rows: Sequence[Row], metric: str = "exact_match") -> np.ndarray:
    """Per row (N,) the `exact_match` or `score` of the best constant answer of its task, known with hindsight.

    The constant is one of the CONSTANTS most frequent labels; of equal ones the more frequent, then the first by name.
    """
    right = content_score if metric == "score" else _is_label
    rows_of: dict[str, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row["task"], []).append(row)
    best: dict[str, str] = {}
    for task, of_task in rows_of.items():
        counts = Counter(row["label"].strip() for row in of_task)
        frequent = sorted(counts, key=lambda label: (-counts[label], label))[:CONSTANTS]
        totals: list[float] = []
        for label in frequent:
            totals.append(sum(right(row, label) for row in of_task))
        best[task] = frequent[totals.index(max(totals))]
    return np.array([right(row, best[row["task"]]) for row in rows])


def _is_label(row: Row, answer: str) -> float:
    return float(exact_match(answer, row["label"]))
