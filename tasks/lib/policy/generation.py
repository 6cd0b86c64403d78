"""Answers sampled from a causal model with its KV cache, token by token.

Why not transformers' `generate`: there the draws of a prompt each pass the prompt, and a row that has ended goes on
until the longest of its batch has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.lib.policy.batches import left_pad, position_ids
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
    draws: int = 1,
) -> list[list[int]]:
    """`draws` answers per prompt, one after the other: ids up to and with the first EOS, or `max_new_tokens` of them.

    `temperature` 0 is greedy and does not depend on the seed or on who shares a batch of `batch_size` answers. The
    model's own generation_config (top-k 50, repetition penalties...) plays no part: PPO needs samples of the bare
    softmax. Prompts of like length share a batch; the global random state is left as it was.
    Problem when a prompt is empty or leaves no room for an answer, or when probabilities are not finite.
    """
    _check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    answers: list[list[list[int]]] = [[] for _ in prompts]
    per_batch = max(1, batch_size // draws)
    devices = [model.device] if model.device.type == "cuda" else []
    with _in_eval(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, len(order), per_batch):
            rows = order[start : start + per_batch]
            ids, is_token = (x.to(model.device) for x in left_pad([prompts[i] for i in rows], pad_id))
            drawn = _decoded(model, ids, is_token, draws, eos_id, max_new_tokens, temperature, top_p)
            for place, i in enumerate(rows):
                answers[i] = drawn[place * draws : (place + 1) * draws]
    return [answer for of_prompt in answers for answer in of_prompt]


def _decoded(
    model: Any,
    ids: Tensor,
    is_token: Tensor,
    draws: int,
    eos_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[list[int]]:
    """`draws` answers to each of the left-padded prompts (B, T): those of a prompt stand together."""
    places = position_ids(is_token)
    output = model(ids, attention_mask=is_token.long(), position_ids=places, use_cache=True, logits_to_keep=1)
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(draws, 0)
    mask, place = is_token.long().repeat_interleave(draws, 0), places[:, -1].repeat_interleave(draws, 0)
    if draws > 1:
        cache.batch_repeat_interleave(draws)

    answers: list[list[int]] = [[] for _ in range(len(mask))]
    alive = torch.arange(len(mask), device=ids.device)
    for left in range(max_new_tokens - 1, -1, -1):
        token = _chosen(logits, temperature, top_p)
        for row, new in zip(alive.tolist(), token.tolist(), strict=True):
            answers[row].append(new)
        goes_on = (token != eos_id).nonzero()[:, 0]
        if not left or not len(goes_on):
            break
        if len(goes_on) < len(alive):  # an answer that has ended leaves the batch
            alive, token, mask, place = (x[goes_on] for x in (alive, token, mask, place))
            cache.batch_select_indices(goes_on)
        mask, place = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), place + 1
        output = model(
            token[:, None],
            attention_mask=mask,
            position_ids=place[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return answers


def _chosen(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The next token (B) by logits (B, V): the likeliest at temperature 0, else one of the nucleus `top_p`."""
    if not torch.isfinite(logits).all():
        raise Problem("generation: probabilities are not finite: the weights are spoilt")
    if not temperature:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        likeliest, tokens = probabilities.sort(-1, descending=True)
        before = likeliest.cumsum(-1) - likeliest
        probabilities = probabilities.scatter(-1, tokens, likeliest.where(before < top_p, 0))
    cumulative = probabilities.cumsum(-1)
    drawn = torch.rand(len(logits), 1, device=logits.device) * cumulative[:, -1:]
    # right: a token without probability is never drawn; torch.multinomial took three times as long
    return torch.searchsorted(cumulative, drawn, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


@contextmanager
def _in_eval(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
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
