"""Ways to fine-tune a causal language model by training few of its weights, or all of them.

`prepare_model` freezes a model and adds what a method trains; `merged` gives back an ordinary model of transformers, so
that every later stage, engine and format knows it. Only prefix tuning cannot be merged.

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
from tasks.lib.finetuning.lora import lora_config, refuse_fields, refuse_modules
from tasks.lib.finetuning.soft_prompt import with_soft_prompt
from tasks.lib.models.loading import load_model, load_policy, nf4
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.settings.methods import METHODS
from tasks.lib.stage import Problem, known_keys

MERGED = tuple(method for method in METHODS if method != "prefix")  # those that end as an ordinary model
# keys of the configuration that a method changes
CHANGED = {"bitfit": ("attention_bias", "mlp_bias"), "bottleneck": ("intermediate_size",), "prompt": ("vocab_size",)}
OWN_FIELDS = {"bottleneck": {"size": 32}, "prompt": {"tokens": 16}}


def fields_of(where: str, method: str, given: dict[str, Any], needs_base: str = "") -> Any:
    """A method's settings: a peft config, or a dict of our own fields; None if it has none.

    Problem for a key that the method does not have, naming the nearest that it has, and for what `lora_config` refuses.
    """
    import peft

    if method == "qlora":
        needs_base = "those stay in four bits"
    if method in ("lora", "qlora"):
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


def merged(method: str, model: Any, base: Path) -> Any:
    """The trained model as an ordinary one; of `prefix` the peft model as it is.

    A quantised base is set aside: its adapters go into the full-precision weights of the folder `base`, for
    merging into four bits would round the update away (and need not be what was trained).
    """
    if method == "qlora":
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        whole = get_peft_model(load_policy(base, on="cpu"), model.peft_config["default"])
        set_peft_model_state_dict(whole, get_peft_model_state_dict(model))
        return whole.merge_and_unload()
    if method in ("lora", "adalora", "ia3"):
        return model.merge_and_unload()
    if method == "bottleneck":
        return without_bottleneck(model)
    return model


def load_quantised(base: Path) -> Any:
    """The model of a folder in nf4, to train adapters on."""
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    # accelerate compares this number with the device that it trains on, and refuses "cuda"
    place = 0 if on_gpu else "cpu"
    return load_model(base, AutoModelForCausalLM, quantization=nf4(dtype), dtype=dtype, on=place)


def save_adapter(model: Any, tokenizer: Any, path: Path) -> None:
    """Write what peft trained, without its base, whole or not at all. Stages that want a model refuse it."""
    for config in model.peft_config.values():
        if isinstance(getattr(config, "target_modules", None), set):
            config.target_modules = sorted(config.target_modules)  # a set has another order in every process
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
