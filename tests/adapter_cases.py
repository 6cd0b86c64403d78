"""How many numbers each way to fine-tune trains of the tiny Llama, with the fields that say so."""

from __future__ import annotations

from typing import Any

# The tiny Llama: V 300, d 16, 2 layers, feed-forward 32, 2 heads. Per layer: 4 matrices 16x16, 3 of 16x32.
LINEAR = 2 * (4 * 16 * 16 + 3 * 16 * 32)
COUNTS = {
    "full": 300 * 16 + LINEAR + 5 * 16,
    "lora": 2 * 2 * (4 * (16 + 16) + 3 * (16 + 32)),  # r (in + out) with r = 2
    "adalora": 2 * 3 * (4 * (16 + 16 + 1) + 3 * (16 + 32 + 1)),  # init_r 3: P, E and Q
    "qlora": 2 * 2 * (4 * (16 + 16) + 3 * (16 + 32)),
    "ia3": 2 * (16 + 16 + 32),  # keys, values, hidden units
    "bitfit": 2 * (4 * 16 + 2 * 32 + 16),
    "bottleneck": 2 * 3 * 16 * 4,  # size 4
    "prompt": 3 * 16,  # three tokens
    "prefix": 3 * 2 * 2 * 16,  # three tokens, keys and values of two layers
    "head": 300 * 16,
}
FIELDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "adalora": {"init_r": 3, "target_r": 2},
    "qlora": {"r": 2},
    "bottleneck": {"size": 4},
    "prompt": {"tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
}
