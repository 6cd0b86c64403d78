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

from tasks.lib.models.batches import left_pad, position_ids
from tasks.lib.stage import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Drawn = list[tuple[int, float]]  # the tokens of an answer, with their log-probabilities


def generate(model: PreTrainedModel, prompts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    """The answers of `sampled` alone."""
    return sampled(model, prompts, **settings)[0]


@torch.no_grad()
def sampled(
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
) -> tuple[list[list[int]], list[list[float]]]:
    """`draws` answers per prompt, one after the other: ids up to and with the first EOS, or `max_new_tokens` of them;
    and the log-probability of every token at this temperature (0 at temperature 0), of all tokens even with `top_p`.

    `temperature` 0 is greedy and does not depend on the seed or on who shares a batch of `batch_size` answers. The
    model's own generation_config (top-k 50, repetition penalties...) plays no part: PPO needs samples of the bare
    softmax. Prompts of like length share a batch; the global random state is left as it was.
    Problem when a prompt is empty or leaves no room for an answer, or when probabilities are not finite.
    """
    _check_room(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    answers: list[list[Drawn]] = [[] for _ in prompts]
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
    flat = [answer for of_prompt in answers for answer in of_prompt]
    return [[token for token, _ in answer] for answer in flat], [[chance for _, chance in answer] for answer in flat]


def _decoded(
    model: Any,
    ids: Tensor,
    is_token: Tensor,
    draws: int,
    eos_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[Drawn]:
    """`draws` answers to each of the left-padded prompts (B, T): those of a prompt stand together."""
    places = position_ids(is_token)
    output = model(ids, attention_mask=is_token.long(), position_ids=places, use_cache=True, logits_to_keep=1)
    cache, logits = output.past_key_values, output.logits[:, -1].repeat_interleave(draws, 0)
    mask, place = is_token.long().repeat_interleave(draws, 0), places[:, -1].repeat_interleave(draws, 0)
    if draws > 1:
        cache.batch_repeat_interleave(draws)

    answers: list[Drawn] = [[] for _ in range(len(mask))]
    alive = torch.arange(len(mask), device=ids.device)
    for left in range(max_new_tokens - 1, -1, -1):
        token, logprob = _chosen(logits, temperature, top_p)
        for row, new, chance in zip(alive.tolist(), token.tolist(), logprob.tolist(), strict=True):
            answers[row].append((new, chance))
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


def _chosen(logits: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The next token (B) by logits (B, V): the likeliest at temperature 0, else one of the nucleus `top_p`; and its
    log-probability (B)."""
    if not torch.isfinite(logits).all():
        raise Problem("generation: probabilities are not finite: the weights are spoilt")
    if not temperature:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    probability = probabilities = torch.softmax(logits.float() / temperature, -1)
    if top_p < 1:
        likeliest, tokens = probabilities.sort(-1, descending=True)
        before = likeliest.cumsum(-1) - likeliest
        probabilities = probabilities.scatter(-1, tokens, likeliest.where(before < top_p, 0))
    cumulative = probabilities.cumsum(-1)
    drawn = torch.rand(len(logits), 1, device=logits.device) * cumulative[:, -1:]
    # right: a token without probability is never drawn; torch.multinomial took three times as long
    token = torch.searchsorted(cumulative, drawn, right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], probability.gather(1, token).log()[:, 0]


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
