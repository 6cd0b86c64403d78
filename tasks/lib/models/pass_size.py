"""How many tokens one pass of a model may have, so that its tensors take a share of the memory that is stated here.

On a GPU they get a quarter of its memory. Only the sizes of the model decide, not what else is in memory: the same run
has the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TRAINING = 1.2e9  # bytes on the CPU that a pass may keep for its backward pass
SCORING = 1e9  # bytes on the CPU of the tensors of one layer and of the logits, in a pass without gradient
CACHE = 1e9  # bytes on the CPU of keys and values of answers that are sampled side by side
GPU_SHARE = 0.25
LOGITS_TRAINED = 6  # float32 numbers per logit: logits, their softmax, and gradients, of two models in distillation
LOGITS_SCORED = 2


def layer_numbers(hidden: int, key_value: int, feed_forward: int) -> int:
    """Numbers per token that a layer keeps for the backward pass, attention not materialised.

    Two norms' inputs and outputs, queries, keys and values before and after rotation, the attention's output, gate,
    activation, up and product. `key_value` is the width of keys, and of values.
    """
    return 7 * hidden + 3 * key_value + 4 * feed_forward


def training_tokens(model: Any, *, logits: bool) -> int:
    """Tokens, padding included, of a pass whose activations are kept, with logits or without."""
    config = model.config.get_text_config()
    memory, layers = _memory(model, TRAINING), config.num_hidden_layers * _layer_bytes(model)
    return tokens_trained_within(memory, layers, config.vocab_size * logits)


def tokens_trained_within(memory: float, layer_bytes: int, vocabulary: int) -> int:
    """The same of bytes of memory, bytes a token that all layers keep, and logits a token."""
    return max(1, int(memory / (layer_bytes + LOGITS_TRAINED * 4 * vocabulary)))


def scoring_tokens(model: Any, *, logits: bool) -> int:
    """Tokens, padding included, of a pass without gradient, in which one layer after the other is in memory."""
    each = _layer_bytes(model) + logits * LOGITS_SCORED * 4 * model.config.get_text_config().vocab_size
    return max(1, int(_memory(model, SCORING) / each))


def cached_tokens(model: Any) -> int:
    """Tokens of prompts and answers whose keys and values are in memory at once."""
    config = model.config.get_text_config()
    each = 2 * config.num_hidden_layers * _key_value(config) * model.dtype.itemsize
    return max(1, int(_memory(model, CACHE) / each))


def passes_within(tokens: int, units: Sequence[T], padded: Callable[[Sequence[T]], int]) -> list[list[T]]:
    """All units as one pass if `padded(units)`, the tokens they take side by side, are at most `tokens`; else cut into
    passes of neighbours that are. A unit that is larger has a pass of its own."""
    if padded(units) <= tokens:
        return [list(units)]
    passes: list[list[T]] = []
    for unit in units:
        if passes and padded([*passes[-1], unit]) <= tokens:
            passes[-1].append(unit)
        else:
            passes.append([unit])
    return passes


def _layer_bytes(model: Any) -> int:
    """Bytes per token that a layer keeps, in the dtype that the model has."""
    config = model.config.get_text_config()
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return layer_numbers(config.hidden_size, _key_value(config), feed_forward) * model.dtype.itemsize


def _key_value(config: Any) -> int:
    """The width of keys, and of values, of a layer."""
    heads = getattr(config, "num_attention_heads", None) or 1  # not every layer needs attention
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return width * (getattr(config, "num_key_value_heads", None) or heads)


def _memory(model: Any, on_cpu: float) -> float:
    if model.device.type != "cuda":
        return on_cpu
    import torch  # late: the planner reads `layer_numbers` without it

    return GPU_SHARE * torch.cuda.get_device_properties(model.device).total_memory
