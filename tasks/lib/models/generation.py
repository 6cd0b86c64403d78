"""Answers sampled from a causal model with its KV cache, token by token.

Why not transformers' `generate`: there every draw for a prompt reads the prompt again, and a row that has ended goes on
until the longest of its batch has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tasks.lib.models.batches import batches_by_length, left_pad, position_ids
from tasks.lib.models.pass_size import cached_tokens, passes_within
from tasks.lib.stage import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    lengths = [len(prompt) for prompt in prompts]
    _check_room(model, lengths, max_new_tokens)
    answers: list[list[int]] = [[] for _ in range(len(prompts) * draws)]
    logprobs: list[list[float]] = [[] for _ in range(len(prompts) * draws)]
    devices = [model.device] if model.device.type == "cuda" else []
    with _in_eval(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for batch in _batches(model, lengths, max(1, batch_size // draws), draws, max_new_tokens):
            ids, is_token = left_pad([prompts[i] for i in batch], pad_id)
            columns = _tokens(
                model,
                ids.to(model.device),
                is_token.to(model.device),
                draws=draws,
                eos_id=eos_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
            )
            for rows, tokens, chances in columns:
                for row, token, chance in zip(rows, tokens, chances, strict=True):
                    place = batch[row // draws] * draws + row % draws
                    answers[place].append(token)
                    logprobs[place].append(chance)
    return answers, logprobs


def _batches(model: Any, lengths: Sequence[int], size: int, draws: int, max_new_tokens: int) -> list[list[int]]:
    """The numbers of the prompts in batches of like length, whose keys and values fit in memory with all draws."""

    def cached(rows: Sequence[int]) -> int:
        return len(rows) * draws * (max(lengths[row] for row in rows) + max_new_tokens)

    batches: list[list[int]] = []
    for batch in batches_by_length(lengths, size):
        batches += passes_within(cached_tokens(model), batch, cached)
    return batches


def _tokens(
    model: Any,
    ids: Tensor,
    is_token: Tensor,
    *,
    draws: int,
    eos_id: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """The next tokens of `draws` answers to each of the left-padded prompts (B, T), until all have ended.

    Each time: the rows that still go on, of B * draws with those of a prompt side by side, the token of each, and its
    log-probability.
    """
    positions = position_ids(is_token)
    output = model(ids, attention_mask=is_token.long(), position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    logits = output.logits[:, -1].repeat_interleave(draws, 0)
    mask = is_token.long().repeat_interleave(draws, 0)
    position = positions[:, -1].repeat_interleave(draws, 0)
    if draws > 1:
        cache.reorder_cache(torch.arange(len(ids), device=ids.device).repeat_interleave(draws))

    rows = torch.arange(len(mask), device=ids.device)
    for number in range(1, max_new_tokens + 1):
        token, logprob = _drawn(logits, temperature, top_p)
        yield rows.tolist(), token.tolist(), logprob.tolist()
        goes_on = (token != eos_id).nonzero()[:, 0]
        if number == max_new_tokens or not len(goes_on):
            return
        if len(goes_on) < len(rows):  # an answer that has ended leaves the batch
            rows, token, mask, position = rows[goes_on], token[goes_on], mask[goes_on], position[goes_on]
            cache.reorder_cache(goes_on)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        output = model(
            token[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]


def _drawn(logits: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """The next token (B) by logits (B, V): the likeliest at temperature 0, else one of the nucleus `top_p`; and its
    log-probability (B)."""
    if not torch.isfinite(logits).all():
        raise Problem("generation: probabilities are not finite: the weights are corrupt")
    if not temperature:
        return logits.argmax(-1), logits.new_zeros(len(logits))
    softmax = torch.softmax(logits.float() / temperature, -1)
    probabilities = softmax
    if top_p < 1:
        likeliest, tokens = softmax.sort(-1, descending=True)
        before = likeliest.cumsum(-1) - likeliest
        probabilities = softmax.scatter(-1, tokens, likeliest.where(before < top_p, 0))
    cumulative = probabilities.cumsum(-1)
    at = torch.rand(len(logits), 1, device=logits.device) * cumulative[:, -1:]
    # right: a token without probability is never drawn; torch.multinomial took three times as long
    token = torch.searchsorted(cumulative, at, right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], softmax.gather(1, token).log()[:, 0]


@contextmanager
def _in_eval(model: PreTrainedModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _check_room(model: PreTrainedModel, lengths: Sequence[int], max_new_tokens: int) -> None:
    """Problem for a prompt without tokens, and for one that leaves no room for an answer."""
    if 0 in lengths:
        raise Problem(f"generation: prompt {lengths.index(0)} has no tokens; check the chat template")
    room = getattr(model.config, "max_position_embeddings", None)
    if room and lengths and max(lengths) + max_new_tokens > room:
        raise Problem(
            f"generation: a prompt of {max(lengths)} tokens and {max_new_tokens} new ones exceed the model's "
            f"{room} positions; shorten the prompts or lower max_new_tokens"
        )
