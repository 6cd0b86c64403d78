"""Models as folders: loading with every check, and saving.

A model folder has config.json, *.safetensors and the tokenizer's files; in place of weights it may hold an adapter
(model_folder.py), which is merged into the weights that it stands on. Nothing that could run code is read: no pickles,
no `auto_map` modules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tasks.lib.models.adapter_folder import merge_adapter
from tasks.lib.models.before_saving import not_finite, refuse_unless_finite, set_ends
from tasks.lib.models.model_folder import first_line, refuse_code, replaced_folder, stacked_folders, weight_files
from tasks.lib.models.precision import kept_dtype, round_weights
from tasks.lib.stage import Problem

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # what matters of its warnings is a Problem here


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path: str | Path, Auto: Any, **how: Any) -> Any:
    """The model of a folder, with the settings of `load_partial`. Problem when the folder lacks one of its tensors."""
    model, lacking = load_partial(path, Auto, **how)
    if lacking:
        raise Problem(
            f"{path}: {len(lacking)} tensors missing or of another shape, first {lacking[0]}; "
            "they would be random: restore the folder"
        )
    return model


def load_partial(
    path: str | Path,
    Auto: Any,
    *,
    configure: Callable[[Any], None] = lambda config: None,
    quantization: Any = None,
    dtype: torch.dtype | None = None,
    on: str | int | None = None,
) -> tuple[Any, list[str]]:
    """The model of a folder, and the names of its tensors that the folder lacks or has in another shape, sorted.

    transformers fills these with random numbers without a word. `Auto` is a class such as AutoModelForCausalLM,
    `configure` changes the configuration first, `quantization` is a BitsAndBytesConfig, `dtype` None that in which the
    weights are kept. The model is in eval mode on `device()` or the device `on`. Problem when the folder holds no
    safetensors, an adapter of other weights, code of its own, what cannot be read, or numbers that are not finite.
    """
    *adapters, whole = folders = stacked_folders(path)
    folder = folders[0]
    if quantization is not None and adapters:
        raise Problem(f"{folder} holds an adapter, which is not merged into quantised weights; merge it first")
    files: list[Path] = []
    for each in folders:
        files += weight_files(each)
        refuse_code(each)
    place = device() if on is None else on
    settings: dict[str, Any] = {}
    if quantization is not None:
        settings = {"quantization_config": quantization, "device_map": {"": place}}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        configure(config)
        if not _is_received():
            _refuse_spoilt_files(files)
        loaded: Any = Auto.from_pretrained(
            whole,
            config=config,
            dtype=dtype or kept_dtype(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are named
            output_loading_info=True,
            **settings,
        )
    except Problem:
        raise
    except Exception as error:  # safetensors, OS, configuration and shape errors have no common class
        raise Problem(f"{folder}: the model cannot be read: {first_line(error)}") from None
    model, info = loaded
    lacking = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    if quantization is None:
        model.to(place)
    for adapter in reversed(adapters):
        model, brought = merge_adapter(model, adapter)
        lacking -= brought
    if adapters and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return in_stated_arithmetic(model.eval()), sorted(lacking)


def load_policy(path: str | Path, *, dtype: torch.dtype | None = None, on: str | int | None = None) -> Any:
    """The causal language model of a folder, without dropout, in the dtype in which it is kept unless one is given.

    Problem for another kind of model.
    """

    def configure(config: Any) -> None:
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise Problem(f"{path}: {config.model_type} is not a causal language model of transformers")
        turn_off_dropout(config)  # log-probs of two passes are compared: it would be noise

    return load_model(path, AutoModelForCausalLM, configure=configure, dtype=dtype, on=on)


def turn_off_dropout(config: Any) -> None:
    """Set every probability of dropout in a configuration to 0."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and re.search(r"dropout|pdrop", key):
            setattr(config, key, 0.0)


def nf4(compute: torch.dtype, keep: list[str] | None = None) -> BitsAndBytesConfig:
    """Quantisation to 4-bit normal floats with their scales quantised too (arXiv 2305.14314), but for modules named
    in `keep`; its layers compute in the dtype `compute`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=keep,
    )


def in_stated_arithmetic(model: Any) -> Any:
    """The model, whose 4-bit layers compute in the dtype that was asked for.

    On a CPU with bf16 instructions bitsandbytes 0.50 repacks a layer's weights for a bf16 kernel in its first forward
    pass: it then computes in bf16, and the scales lose their own quantisation for good, so that what is saved
    afterwards is not what was quantised.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    return model


def save_model(model: Any, tokenizer: Any, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a model folder whole or not at all; the same weights give the same bytes."""
    refuse_unless_finite(path, model.state_dict())
    set_ends(model, tokenizer)
    with replaced_folder(Path(path)) as folder:
        round_weights(model, dtype)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _is_received() -> bool:
    """True where FSDP fills the tensors later, from the first process of the machine: until then they hold anything."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("LOCAL_RANK", "0") != "0"


def _refuse_spoilt_files(files: Sequence[Path]) -> None:
    """Problem for NaN and infinity in the files, where quantisation has not hidden them yet."""
    for file in files:
        spoilt = not_finite(_stored(file))
        if spoilt is not None:
            raise Problem(f"{file.parent}: the tensor {spoilt} holds NaN or infinity; restore the folder")


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and content of every tensor of a file, one in memory at a time."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            yield name, file.get_tensor(name)
