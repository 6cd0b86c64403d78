"""In which numbers weights are kept: `precision` of params.yaml decides for models/base, all later models follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tasks.lib.settings.precision import chosen_precision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def chosen_dtype(precision: str, parameters: int) -> torch.dtype:
    """What `precision` (auto, float32 or bfloat16) means for a model of so many parameters."""
    return DTYPES[chosen_precision(precision, parameters)]


def kept_dtype(folder: str | Path) -> torch.dtype:
    """In which numbers the weights of a model folder are kept; whatever is not bfloat16 is loaded as float32."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads the folder says what is wrong with it
        return torch.float32
    name = config.get("dtype") or config.get("torch_dtype")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@torch.no_grad()
def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Give the weights of a model a dtype, in place. `model.to` would round its tables of positions too."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def autocast(model: Any, kept: torch.dtype) -> torch.autocast:
    """The context in which a model with float32 masters is trained: bf16 passes if its weights are kept in bf16.

    Without the cache of cast weights, which would outlive a step.
    """
    enabled = kept == torch.bfloat16 and model.dtype == torch.float32
    return torch.autocast(model.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
