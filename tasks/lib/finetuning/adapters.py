"""Ways to fine-tune a causal language model by training few of its weights, or all of them.

`prepare_model` freezes a model and adds what a method trains; `save_trained` writes it. What peft trained is an adapter
folder, which `load_policy` makes an ordinary model of transformers; so is what the other methods write. Only prefix
tuning cannot be merged.

full        all weights
lora        low-rank updates (arXiv 2106.09685); `use_rslora`, `use_dora` are fields of peft's LoraConfig
adalora     low-rank updates whose ranks go where they matter most (arXiv 2303.10512)
qlora       low-rank updates on a base in nf4 with double quantisation (arXiv 2305.14314)
ia3         a factor per key, value and hidden unit (arXiv 2205.05638)
bitfit      biases only (arXiv 2106.10199); Llama has none: they are added as zeros
bottleneck  a small feed-forward network in parallel to each block's own (arXiv 2110.04366)
prompt      the embeddings of new tokens before every conversation (arXiv 2104.08691)
prefix      keys and values before every layer's own (arXiv 2101.00190)
head        the output layer on frozen features
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tasks.lib.finetuning.bottleneck import with_bottleneck, without_bottleneck
from tasks.lib.finetuning.lora import lora_config, refuse_fields, refuse_modules, save_adapted
from tasks.lib.finetuning.soft_prompt import with_soft_prompt
from tasks.lib.models.loading import load_model, nf4, save_model
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.models.precision import kept_dtype
from tasks.lib.settings.methods import PEFT
from tasks.lib.stage import Problem, known_keys

# keys of the configuration that a method changes
CHANGED = {"bitfit": ("attention_bias", "mlp_bias"), "bottleneck": ("intermediate_size",), "prompt": ("vocab_size",)}
OWN_FIELDS = {"bottleneck": {"size": 32}, "prompt": {"tokens": 16}}


def fields_of(where: str, method: str, given: dict[str, Any]) -> Any:
    """A method's settings: a peft config, or a dict of our own fields; None if it has none.

    Problem for a key that the method does not have, naming the nearest that it has, and for what `lora_config` refuses.
    """
    import peft

    if method in ("lora", "qlora"):
        needs_base = "those stay in four bits" if method == "qlora" else ""
        return lora_config(where, given, needs_base=needs_base, task_type="CAUSAL_LM")
    if method == "adalora":
        return _adalora_config(where, given)
    if method == "ia3":
        return _peft_config(where, given, peft.IA3Config)
    if method == "prefix":
        return _peft_config(where, given, peft.PrefixTuningConfig, num_virtual_tokens=16)
    own = OWN_FIELDS.get(method, {})
    for key, value in given.items():
        if key not in own:
            raise Problem(f"params.yaml: {where}.{key} is not a key of {method}; it has {', '.join(own) or 'none'}")
        if not isinstance(value, int) or value < 1:
            raise Problem(f"params.yaml: {where}.{key}: expected a whole number of at least 1, found {value!r}")
    return own | given or None


def _adalora_config(where: str, given: dict[str, Any]) -> Any:
    """The steps of the schedule are those of the run, see tasks/lib/finetuning/adalora.py."""
    from peft import AdaLoraConfig

    refuse_fields(where, given)
    schedule = {"total_step": 2**31, "tinit": -1, "tfinal": -1}
    config = _peft_config(where, given, AdaLoraConfig, target_modules="all-linear", **schedule)
    if "r" in given or "total_step" in given or config.target_r >= config.init_r:
        raise Problem(
            f"params.yaml: {where}: adalora shrinks the ranks from init_r to a smaller target_r on average, "
            "over the steps of the run: leave out r and total_step"
        )
    return config


def _peft_config(where: str, given: dict[str, Any], Config: type, **defaults: Any) -> Any:
    try:
        return Config(**{"task_type": "CAUSAL_LM"} | defaults | known_keys(where, given, Config))
    except (ValueError, TypeError) as error:
        raise Problem(f"params.yaml: {where}: {' '.join(str(error).split())[:200]}") from None


def prepare_model(method: str, fields: Any, model: Any, tokenizer: Any) -> Any:
    """The model with only the method's weights left to train. `prompt` also adds its tokens to the tokenizer.

    New weights come from torch's global generator. Except for `prompt` and `prefix` the model still computes
    what it did. Problem when the model has no place for the method.
    """
    if method == "full":
        return model
    if method == "bitfit":
        return _train_only(_with_biases(model), lambda name: name.endswith(".bias"))
    if method == "bottleneck":
        return _train_only(with_bottleneck(model, fields["size"]), lambda name: ".bottleneck." in name)
    if method == "head":
        untied = _rebuilt(model, tie_word_embeddings=False)
        return _train_only(untied, lambda name: name == "lm_head.weight")
    if method == "prompt":
        return with_soft_prompt(model, tokenizer, fields["tokens"])
    from peft import get_peft_model, prepare_model_for_kbit_training

    if method in ("lora", "adalora", "qlora"):
        refuse_modules("sft.adapter", fields, model)
    if method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method == "lora":
        from tasks.lib.finetuning.merged_lora import merge_in_passes

        merge_in_passes(fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers 5 renamed
        try:
            return get_peft_model(model, fields)
        except ValueError as error:  # ia3 knows the modules of some architectures only
            raise Problem(f"params.yaml: sft.method: {method}: {model.config.model_type}: {error}") from None


def save_trained(method: str, model: Any, tokenizer: Any, base: Path, path: Path) -> None:
    """Write what a method trained of the model in the folder `base`: its adapter, or the weights that it is part of.

    The adapter of a quantised base stands on the full-precision weights: merging into four bits would round the update
    away. Stages refuse that of `prefix`, which cannot be merged.
    """
    if method in PEFT:
        save_adapted(model, tokenizer, base, path)
    elif method == "prefix":
        save_prefix(model, tokenizer, path)
    else:
        if method == "bottleneck":
            model = without_bottleneck(model)
        save_model(model, tokenizer, path, dtype=kept_dtype(base))


def load_quantised(base: Path) -> Any:
    """The model of a folder in nf4, to train adapters on."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    # accelerate compares this number with the device that it trains on, and refuses "cuda"
    place = 0 if on_gpu else "cpu"
    return load_model(base, AutoModelForCausalLM, quantization=nf4(dtype), dtype=dtype, on=place)


def save_prefix(model: Any, tokenizer: Any, path: Path) -> None:
    """Write what peft trained, without its base, whole or not at all."""
    with replaced_folder(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card


def count_trainable(model: Any) -> int:
    """How many numbers a model's optimiser would move."""
    return sum(getattr(p, "trained", p.numel()) for p in model.parameters() if p.requires_grad)


def _train_only(model: Any, is_trained: Callable[[str], bool]) -> Any:
    """The model with all weights frozen but those whose names `is_trained` takes; Problem when there is none."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    if not count_trainable(model):
        raise Problem(f"{model.config.model_type}: this method finds nothing to train in it; choose lora")
    return model


def _rebuilt(model: Any, **changes: Any) -> Any:
    """A model of a changed configuration with the weights of `model`; what is new in it is 0."""
    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        if not hasattr(config, key):
            raise Problem(f"{config.model_type}: no {key} in its configuration; choose the method lora")
        setattr(config, key, value)
    other = type(model)(config).to(device=model.device, dtype=model.dtype)
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for name in missing:
            other.get_parameter(name).zero_()
    other.generation_config = model.generation_config
    return other.eval()


def _with_biases(model: Any) -> Any:
    """A model that has biases; if it has none they are added as zeros."""
    if any(name.endswith(".bias") for name, _ in model.named_parameters()):
        return model
    return _rebuilt(model, attention_bias=True, mlp_bias=True)
