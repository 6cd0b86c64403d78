"""What later stages rely on in a causal model, tried out on a few tokens in place of believing a list of architectures.

Each probe computes the same log-probabilities in two ways and gives their largest difference. A model whose layers
forget where they are (no causal mask, a state that padding runs through) shows it with any weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.batches import left_pad, position_ids, right_pad
from tasks.lib.models.model_folder import first_line
from tasks.lib.models.shared_prefix import branch_mask, branched, padded

SHORT, LONG = 9, 16  # tokens of the two rows that are probed
ANSWER = 4  # tokens of each of two answers to one prompt
ALLOWED = {torch.float32: 1e-3}  # nats by which two ways may differ; 0.5 in a type with fewer digits


def probes(model: Any, longest: int) -> dict[str, str]:
    """What is probed -> why the model cannot do it, in a line; "" if it can.

    `longest` are the tokens of the longest row that the stages will make: rows within a sliding window do not show it.
    """
    window = getattr(model.config, "sliding_window", None) or 0
    length = min(longest, window + LONG) if window else LONG
    return {
        "causal": failure(causal, model),
        "left_padding": failure(left_padding, model),
        "right_padding": failure(right_padding, model),
        "cache": failure(cached_steps, model),
        "share_prompt": failure(shared_prompt, model, max(length, LONG)),
    }


@torch.no_grad()
def failure(probe: Callable[..., float], model: Any, *lengths: int) -> str:
    """Why the model fails a probe: what it raised, or by how much two ways differ."""
    try:
        difference = probe(model, *lengths)
    except Exception as error:  # of the model's own code: an unknown argument, a lacking method, a shape
        return f"{type(error).__name__}: {first_line(error)}"
    if difference <= ALLOWED.get(model.dtype, 0.5):  # NaN fails, too
        return ""
    return f"log-probabilities differ by {difference:.2g}"


def causal(model: Any) -> float:
    """Does a later token change what the model predicts before it?"""
    ids = _row(model, LONG)
    other = ids.clone()
    other[:, SHORT:] = other[:, SHORT:].flip(1)
    return _difference(_logprobs(model, ids)[:, :SHORT], _logprobs(model, other)[:, :SHORT])


def left_padding(model: Any) -> float:
    """Does padding on the left, with its mask and positions, change a row? Generation pads so."""
    rows = _two_rows(model)
    ids, is_token = left_pad(rows, 0)
    return _padded_difference(model, rows, ids, is_token, positions=position_ids(is_token))


def right_padding(model: Any) -> float:
    """Does padding on the right, with its mask, change a row? Training and scoring pad so."""
    rows = _two_rows(model)
    ids, is_token = right_pad(rows, 0)
    return _padded_difference(model, rows, ids, is_token)


def cached_steps(model: Any) -> float:
    """Does the cache of two prompts, repeated and then selected from, go on as whole rows would?"""
    rows = _two_rows(model)
    ids, is_token = left_pad(rows, 0)
    ids, is_token = ids.to(model.device), is_token.to(model.device)
    positions = position_ids(is_token)
    cache = model(ids, attention_mask=is_token.long(), position_ids=positions, use_cache=True).past_key_values
    for rows_kept in ([0, 0, 1, 1], [1, 2]):  # in the end one of each
        cache.reorder_cache(torch.tensor(rows_kept, device=ids.device))
    mask = torch.cat([is_token.long(), is_token.new_ones(2, 1).long()], 1)
    token = _row(model, 2).T  # (2, 1)
    output = model(
        token, attention_mask=mask, position_ids=positions[:, -1:] + 1, past_key_values=cache, use_cache=True
    )
    largest = 0.0
    for number, row in enumerate(rows):
        whole = torch.tensor([[*row, int(token[number])]], device=ids.device)
        stepped = _log_softmax(output.logits[number, -1])
        largest = max(largest, _difference(_logprobs(model, whole)[0, -1], stepped))
    return largest


def shared_prompt(model: Any, length: int) -> float:
    """Are two answers to one prompt in one row what they are in rows of their own, of `length` tokens?"""
    prompt = _row(model, length - ANSWER)[0].tolist()
    sequences = [[*prompt, *_row(model, ANSWER, start)[0].tolist()] for start in (1, 3)]
    ids, positions, branch = (tensor.to(model.device) for tensor in padded([branched(sequences, len(prompt))]))
    mask = branch_mask(branch, model.dtype)
    # (1, 2 answers, V): of long rows, the logits of the prompt would be most of the memory
    logits = model(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False, logits_to_keep=2 * ANSWER
    ).logits
    largest = 0.0
    for sequence, together in zip(sequences, logits[0, -2 * ANSWER :].split(ANSWER), strict=True):
        row = torch.tensor([sequence], device=model.device)
        alone = model(row, use_cache=False, logits_to_keep=ANSWER).logits[0, -ANSWER:]
        largest = max(largest, _difference(_log_softmax(together), _log_softmax(alone)))
    return largest


def _row(model: Any, tokens: int, start: int = 0) -> Tensor:
    """Some ids (1, tokens), of which no two neighbours are equal."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return (torch.arange(start, start + tokens, device=model.device)[None] * 7 + 3) % vocabulary


def _two_rows(model: Any) -> list[list[int]]:
    return [_row(model, SHORT, 2)[0].tolist(), _row(model, LONG)[0].tolist()]


def _logprobs(model: Any, ids: Tensor) -> Tensor:
    """Log-probabilities (B, T, V) of rows without padding."""
    return _log_softmax(model(ids, use_cache=False).logits)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)


def _difference(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _padded_difference(
    model: Any, rows: list[list[int]], ids: Tensor, is_token: Tensor, positions: Tensor | None = None
) -> float:
    """The largest difference between rows in one padded batch and each alone."""
    where = {} if positions is None else {"position_ids": positions.to(model.device)}
    mask = is_token.long().to(model.device)
    logits = model(ids.to(model.device), attention_mask=mask, use_cache=False, **where).logits
    largest = 0.0
    for number, row in enumerate(rows):
        alone = _logprobs(model, torch.tensor([row], device=model.device))[0]
        together = _log_softmax(logits[number][is_token[number].to(model.device)])
        largest = max(largest, _difference(alone, together))
    return largest
