"""How far a policy has moved from the model that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logprobs

BATCH_SIZE = 64


def drift(
    policy: Any, reference: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, seed: int
) -> dict[str, float]:
    """`kl`: KL(policy || reference) in nats per answer, estimated on an answer of the policy to each of the prompts;
    `answer_tokens` and `answer_tokens_sft`: the mean lengths of both models' answers."""
    settings: dict[str, Any] = {
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id,
        "max_new_tokens": max_new_tokens,
        "temperature": 1.0,
        "batch_size": BATCH_SIZE,
        "seed": seed,
    }
    answers = generate(policy, prompts, **settings)
    under_policy = answer_logprobs(policy, prompts, answers, batch_size=BATCH_SIZE)
    under_reference = answer_logprobs(reference, prompts, answers, batch_size=BATCH_SIZE)
    log_ratios: list[float] = []  # of whole answers
    for policy_logprobs, reference_logprobs in zip(under_policy, under_reference, strict=True):
        log_ratios.append((policy_logprobs - reference_logprobs).sum().item())
    answers_of_reference = generate(reference, prompts, **settings)
    return {
        "kl": mean(log_ratios),
        "answer_tokens": mean(len(answer) for answer in answers),
        "answer_tokens_sft": mean(len(answer) for answer in answers_of_reference),
    }
