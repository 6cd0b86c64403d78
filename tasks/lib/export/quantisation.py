"""Smaller weights: LLM.int8() and NF4 through bitsandbytes, and the arithmetic of integer grids.

int8: vector-wise absmax, activation columns with a value >= threshold stay 16-bit (arXiv 2208.07339).
nf4: 4-bit normal floats in blocks of 64, their scales in 8 bits (arXiv 2305.14314): 4.127 bits a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_model, nf4
from tasks.lib.stage import Problem

Kind = Literal["int8", "nf4"]
LEAST_SHARE = 0.9  # of a model's numbers must be quantised, or the format's name is no promise


def write_bitsandbytes(source: Path, folder: Path, kind: Kind, threshold: float, keep: list[str]) -> None:
    """Quantise the linear layers of the model folder `source`, except modules named in `keep`.

    `folder` is then a model folder that `from_pretrained` loads as it is. Always from full precision. Problem for a
    model of which bitsandbytes leaves most as it is, or stores the matrices transposed.
    """
    _refuse_transposed(source, kind)
    if kind == "nf4":
        how = nf4(torch.float32, keep)
    else:
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=keep)
    model = load_model(source, AutoModelForCausalLM, quantization=how, dtype=torch.float32, on="cpu")
    share = quantised_share(model, keep)
    if share < LEAST_SHARE:
        raise Problem(
            f"{kind}: bitsandbytes quantises {share:.0%} of the numbers outside quantize.keep of a "
            f"{model.config.model_type}, at least {LEAST_SHARE:.0%} are promised; take {kind} out of quantize.formats"
        )
    model.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)


def quantised_share(model: Any, keep: Sequence[str]) -> float:
    """The fraction of a model's matrices that bitsandbytes has quantised, embeddings and the modules `keep` aside.

    It replaces nn.Linear alone: Falcon's linear layers are a class of their own, the experts of a mixture one tensor.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    quantised = total = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) or module is model.get_output_embeddings():
            continue
        if set(keep).intersection(name.split(".")):
            continue
        if isinstance(module, Linear4bit | Linear8bitLt):
            numbers = module.in_features * module.out_features
            quantised += numbers
            total += numbers
        else:
            total += sum(tensor.numel() for tensor in module.parameters(recurse=False) if tensor.ndim > 1)
    return quantised / max(total, 1)


def _refuse_transposed(source: Path, kind: Kind) -> None:
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config).modules()
    if any(isinstance(layer, Conv1D) for layer in layers):
        raise Problem(
            f"{kind}: {config.model_type} stores its matrices transposed, which the comparison of formats cannot read; "
            f"take {kind} out of quantize.formats"
        )


def dequantised(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported model folder in float32, named as in the model it was made from."""
    stored = load_file(folder / "model.safetensors")
    weights = {}
    for name, tensor in stored.items():
        if not name.endswith(".weight"):
            continue
        row_scales = f"{name.removesuffix('.weight')}.SCB"  # of int8: the largest absolute value of each row
        if f"{name}.absmax" in stored:  # of nf4: the scales of its blocks
            weights[name] = _from_nf4(name, stored)
        elif row_scales in stored:
            weights[name] = tensor.float() * stored[row_scales][:, None] / 127
        else:
            weights[name] = tensor.float()
    return weights


def _from_nf4(name: str, stored: dict[str, Tensor]) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    scales = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
    state = QuantState.from_dict(scales, device=torch.device("cpu"))
    return dequantize_4bit(stored[name], state).float()


def quantised_bits(folder: Path) -> float:
    """Bits per weight of the quantised matrices alone, scales included, constant tables not."""
    bits = count = 0
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(".SCB") or name.endswith("absmax"):
            bits += tensor.numel() * tensor.element_size() * 8
        elif name.endswith(".weight") and not tensor.is_floating_point():
            bits += tensor.numel() * tensor.element_size() * 8
            count += tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1)  # nf4: two weights to a byte
    return bits / count if count else 0.0


def weight_error(reference: dict[str, Tensor], weights: dict[str, Tensor]) -> tuple[float, float]:
    """(max, mean) absolute difference over all weights that the two models share."""
    largest, total, count = 0.0, 0.0, 0
    for name, tensor in weights.items():
        if name in reference:
            difference = (tensor.float() - reference[name].float()).abs()
            largest = max(largest, difference.max().item())
            total += difference.sum().item()
            count += difference.numel()
    return largest, total / max(count, 1)
