"""What holds of every model that is written: its numbers are finite, and its ends are those of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from tasks.lib.stage import Problem


def refuse_unless_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Problem for NaN or infinity in what is to be written to `path`."""
    spoilt = not_finite(tensors.items())
    if spoilt is not None:
        raise Problem(f"{path}: not written: the tensor {spoilt} holds NaN or infinity; lower the learning rate")


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with NaN or infinity."""
    for name, tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


def set_ends(model: Any, tokenizer: Any) -> None:
    """Give a model's configurations the EOS and the pad token of the tokenizer, if it has an EOS."""
    if tokenizer.eos_token_id is None:
        return
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():  # a reward model does not
        model.generation_config = _generation_config(model, tokenizer)


def _generation_config(model: Any, tokenizer: Any) -> GenerationConfig:
    """Greedy by default. Ends that the model came with stay: stories260K also stops at its BOS."""
    earlier = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id}
    if isinstance(earlier, list):
        ends.update(earlier)
    elif earlier is not None:
        ends.add(earlier)
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends) if len(ends) > 1 else ends.pop(),
    )
