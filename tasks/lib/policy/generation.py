"""Answers sampled from a causal model, through transformers' `generate` with its KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.lib.policy.batches import left_pad
from tasks.lib.stage import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    batch_size: int,
    seed: int,
) -> list[list[int]]:
    """One answer per prompt: token ids up to and with the first EOS, or `max_new_tokens` ids without one.

    `temperature` 0 is greedy and does not depend on the seed or on who shares a batch. The model's own
    generation_config (top-k 50, repetition penalties...) is set aside: PPO needs samples of the bare softmax.
    Rows of like length share a batch; the order is kept. The global random state is left as it was.
    Problem when a prompt is empty or leaves no room for an answer.
    """
    _check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    answers: list[list[int]] = [[] for _ in prompts]
    devices = [model.device] if model.device.type == "cuda" else []
    with _bare(model, temperature, top_p, max_new_tokens, eos_id, pad_id), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, is_token = left_pad([prompts[i] for i in rows], pad_id)
            ids, is_token = ids.to(model.device), is_token.to(model.device)
            output = _sampled(model, ids, is_token)
            for i, row in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
                answers[i] = cut_after(row, eos_id)
    return answers


def _sampled(model: Any, ids: Tensor, is_token: Tensor) -> Tensor:
    try:
        return model.generate(input_ids=ids, attention_mask=is_token.long())
    except RuntimeError as error:
        if "probability tensor" in str(error):
            raise Problem("generation: probabilities are not finite: the weights are spoilt") from None
        raise


def cut_after(ids: list[int], eos_id: int) -> list[int]:
    """The ids up to and with the first EOS; all of them if there is none."""
    return ids[: ids.index(eos_id) + 1] if eos_id in ids else ids


@contextmanager
def _bare(
    model: PreTrainedModel, temperature: float, top_p: float, max_new_tokens: int, eos_id: int, pad_id: int
) -> Iterator[None]:
    """The model in eval mode and with our generation settings only; both are put back."""
    from transformers import GenerationConfig

    chosen = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        do_sample=bool(chosen),
        **chosen,
    )
    training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)


def _check_room(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    lengths = [len(prompt) for prompt in prompts]
    if 0 in lengths:
        raise Problem(f"generation: prompt {lengths.index(0)} has no tokens; check the chat template")
    room = getattr(model.config, "max_position_embeddings", None)
    if room and lengths and max(lengths) + max_new_tokens > room:
        raise Problem(
            f"generation: a prompt of {max(lengths)} tokens and {max_new_tokens} new ones exceed the model's "
            f"{room} positions; shorten the prompts or lower max_new_tokens"
        )
