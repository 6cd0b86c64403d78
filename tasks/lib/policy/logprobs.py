"""Log-probabilities of given answers under a causal model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tasks.lib.policy.batches import left_pad, position_ids, right_pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at `ids`: logits (B, T, V), ids (B, T) -> (B, T), in float32.

    Divide policy and reference by the temperature the answers were sampled at, or their KL is not that of the
    sampled distribution (LMHP, N+ detail 5).
    """
    logits = logits.float() / temperature
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def padded_answers(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts padded on the left and answers on the right, so that every answer starts in one column.

    Returns ids (B, P+T), is_token (B, P+T), is_answer (B, T), P and T the longest prompt and answer.
    Padding holds token 0: the masks come from lengths, so that even pad = EOS is safe.
    """
    prompt, is_prompt = left_pad(prompts, 0)
    answer, is_answer = right_pad(answers, 0)
    ids, is_token = torch.cat([prompt, answer], 1), torch.cat([is_prompt, is_answer], 1)
    return ids.to(device), is_token.to(device), is_answer.to(device)


def answer_logits(model: PreTrainedModel, ids: Tensor, is_token: Tensor, answer_width: int) -> Tensor:
    """The logits (B, T, V) that predict the last T = `answer_width` columns of `ids` (B, P+T)."""
    output = model(
        input_ids=ids,
        attention_mask=is_token.long(),
        position_ids=position_ids(is_token),
        logits_to_keep=answer_width + 1,  # the vocabulary is the widest matrix: skip the prompt
        use_cache=False,
    )
    return output.logits[:, -answer_width - 1 : -1]


@torch.no_grad()
def answer_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int,
    temperature: float = 1.0,
) -> list[Tensor]:
    """The log-probability of every answer token: one tensor (len(answer),) per row, on the CPU.

    Runs without dropout and without gradient; rows of like length share a batch; the order is kept.
    """
    training = model.training
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), len(answers[i]), i))
    result: list[Tensor] = [torch.empty(0)] * len(order)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        some = [answers[i] for i in rows]
        ids, is_token, is_answer = padded_answers([prompts[i] for i in rows], some, model.device)
        width = is_answer.shape[1]
        if width:
            logits = answer_logits(model, ids, is_token, width)
            found = token_logprobs(logits, ids[:, -width:], temperature).cpu()
            for i, row in zip(rows, found, strict=True):
                result[i] = row[: len(answers[i])].clone()
    model.train(training)
    return result
