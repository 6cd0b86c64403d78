"""How many tokens one pass of a model may have, so that its tensors take a share of the memory that is stated here.

On a GPU they get a quarter of its memory. Only the sizes of the model decide, not what else is in memory: the same run
has the same passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TRAINING = 2e9  # bytes on the CPU that a pass may keep for its backward pass
SCORING = 5e8  # bytes on the CPU of the tensors of a layer, in a pass without gradient
LOGITS = 1e8  # bytes of logits that are made at once, on any device
GPU_SHARE = 0.25


def layer_numbers(hidden: int, key_value: int, feed_forward: int) -> int:
    """Numbers per token that a layer keeps for the backward pass, attention not materialised.

    Two norms' inputs and outputs, queries, keys and values before and after rotation, the attention's output, gate,
    activation, up and product. `key_value` is the width of keys, and of values.
    """
    return 7 * hidden + 3 * key_value + 4 * feed_forward


def training_tokens(model: Any) -> int:
    """Tokens, padding included, of a pass whose activations are kept."""
    config = model.config.get_text_config()
    return max(1, int(_memory(model, TRAINING) / (config.num_hidden_layers * _layer_bytes(model))))


def scoring_tokens(model: Any) -> int:
    """Tokens, padding included, of a pass without gradient, in which one layer after the other is in memory."""
    return max(1, int(_memory(model, SCORING) / _layer_bytes(model)))


def rows_of_logits(vocabulary: int) -> int:
    """How many float32 rows of logits over a vocabulary are made at once."""
    return max(1, int(LOGITS / (4 * vocabulary)))


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
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_value = width * (getattr(config, "num_key_value_heads", None) or heads)
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return layer_numbers(config.hidden_size, key_value, feed_forward) * model.dtype.itemsize


def _memory(model: Any, on_cpu: float) -> float:
    if model.device.type != "cuda":
        return on_cpu
    import torch  # late: the planner reads `layer_numbers` without it

    return GPU_SHARE * torch.cuda.get_device_properties(model.device).total_memory
