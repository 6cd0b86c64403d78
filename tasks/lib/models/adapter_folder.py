"""An adapter as a model folder: written with the hash of the weights that it stands on, and merged into them again.

The folder has what peft writes (adapter_config.json, adapter_model.safetensors), config.json and the tokenizer's files
of the model that base and adapter are together, and base.json (model_folder.py).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.lib.models.before_saving import refuse_unless_finite, set_ends
from tasks.lib.models.model_folder import ADAPTER, BASE, first_line, replaced_folder, weights_hash
from tasks.lib.models.precision import kept_dtype
from tasks.lib.stage import Problem, write_json

PREFIX = "base_model.model."  # of peft's names for the tensors of the model that it wraps
PLAIN_STARTS = (True, "gaussian", "orthogonal")  # of LoRA; others change the base's weights, or the sum


class Adapter(NamedTuple):
    """What peft trained of a model: its configuration and its tensors, on the CPU."""

    config: Any
    tensors: dict[str, Tensor]


def is_whole_difference(model: Any) -> bool:
    """Whether base and adapter are all of a model of peft's: its start may have changed the base, as PiSSA's does."""
    return getattr(model.peft_config["default"], "init_lora_weights", True) in PLAIN_STARTS


def adapter_of(model: Any, *, whole: Sequence[str] = ()) -> Adapter:
    """The adapter in a model that peft wrapped or put its layers into; modules named in `whole` are a part of it."""
    from peft import get_peft_model_state_dict

    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode, config.init_lora_weights = True, True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set has another order in every process
    tensors = {}
    for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items():
        tensors[PREFIX + name.removeprefix(PREFIX)] = _stored(tensor)
    for name in whole:
        for key, tensor in model.get_submodule(name).state_dict().items():
            tensors[f"{PREFIX}{name}.{key}"] = _stored(tensor)
    if whole:
        config.modules_to_save = [*whole]
    return Adapter(config, tensors)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).clone()


def save_adapter(adapter: Adapter, model: Any, tokenizer: Any, base: Path, path: Path) -> None:
    """Write an adapter of `model`, which stands on the folder `base`, whole or not at all."""
    refuse_unless_finite(path, adapter.tensors)
    model = getattr(model, "get_base_model", lambda: model)()
    set_ends(model, tokenizer)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = kept_dtype(base)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the base while the adapter was trained
    adapter.config.base_model_name_or_path = base.as_posix()
    with replaced_folder(path) as folder:
        save_file(adapter.tensors, folder / ADAPTER[1], metadata={"format": "pt"})
        adapter.config.save_pretrained(folder)
        write_json(folder / BASE, {"path": base.as_posix(), "weights": weights_hash(base)})
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def merge_adapter(model: Any, folder: Path) -> tuple[Any, set[str]]:
    """The model with the adapter of a folder added to its weights, an ordinary model; the names of its whole tensors.

    Problem for an adapter that has not the tensors which its configuration asks for in this model.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.task_type = None  # that of the model it was trained in; another with the same layers takes it as well
        tensors = load_file(folder / ADAPTER[1])
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, about what transformers 5 renamed and about tied weights
            adapted: Any = PeftModel(model, config)
            lacking = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() ^ tensors.keys()
            if lacking:
                raise ValueError(f"{len(lacking)} tensors missing or unknown, first {min(lacking)}")
            set_peft_model_state_dict(adapted, tensors)
            merged = adapted.merge_and_unload()
    except Exception as error:  # configuration, shape and OS errors have no common class
        raise Problem(f"{folder}: the adapter cannot be merged: {first_line(error)}; restore the folder") from None
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    merged.requires_grad_(True)
    return merged, {name.removeprefix(PREFIX) for name in tensors}
