"""Which weights a stage trains: the words for it that several sections and rooms share."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["full", "lora", "adalora", "qlora", "ia3", "bitfit", "bottleneck", "prompt", "prefix", "head"]
"""Ways to fine-tune a causal language model; tasks/lib/finetuning/adapters.py explains each."""
METHODS: tuple[str, ...] = get_args(Method)
PEFT = ("lora", "adalora", "qlora", "ia3")
"""The methods that leave an adapter, which is merged into its base when the model is loaded."""

HeadMethod = Literal["full", "lora", "head"]
"""Ways to train a model with a new head: all weights, low-rank updates and the head, the head on fixed features."""
