"""Ways to fine-tune a causal language model by training few of its weights, or all of them.

`adapt` freezes a model and adds what a method trains; `merged` gives back an ordinary model of transformers, so
that every later stage, engine and format knows it. Only prefix tuning cannot be merged.

full        all weights
lora        low-rank updates (arXiv 2106.09685); `use_rslora`, `use_dora` are fields of peft's LoraConfig
adalora     low-rank updates whose ranks go where they matter most (arXiv 2303.10512)
qlora       low-rank updates on a base in nf4 with double quantisation (arXiv 2305.14314)
ia3         a factor per key, value and hidden unit (arXiv 2205.05638)
bitfit      biases only (arXiv 2106.10199); Llama has none: they are added as zeros
bottleneck  a small feed-forward network beside each block's own (the parallel adapter of arXiv 2110.04366)
prompt      the embeddings of new tokens before every conversation (arXiv 2104.08691)
prefix      keys and values before every layer's own (arXiv 2101.00190)
head        the output layer on frozen features
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tasks.lib.finetuning.lora import lora_config
from tasks.lib.models.loading import load_model, load_policy, nf4
from tasks.lib.models.model_folder import replaced_folder
from tasks.lib.settings.methods import METHODS
from tasks.lib.stage import Problem, known_keys

MERGED = tuple(method for method in METHODS if method != "prefix")  # those that end as an ordinary model
OWN_FIELDS = {"bottleneck": {"size": 32}, "prompt": {"tokens": 16}}
BEGINS = re.compile(r"^\s*\{\{-?\s*bos_token\s*-?\}\}")


def fields_of(where: str, method: str, given: dict[str, Any]) -> Any:
    """A method's settings: a peft config, or a dict of our own fields; None if it has none.

    Problem for a key that the method does not have, naming the nearest that it has.
    """
    import peft

    if method in ("lora", "qlora"):
        return lora_config(where, given, task_type="CAUSAL_LM")
    configs: dict[str, tuple[type, dict[str, Any]]] = {
        "adalora": (  # the steps of the schedule are those of the run, see tasks/lib/finetuning/adalora.py
            peft.AdaLoraConfig,
            {"target_modules": "all-linear", "total_step": 2**31, "tinit": -1, "tfinal": -1},
        ),
        "ia3": (peft.IA3Config, {}),
        "prefix": (peft.PrefixTuningConfig, {"num_virtual_tokens": 16}),
    }
    if method in configs:
        Config, defaults = configs[method]
        try:
            fields = Config(**{"task_type": "CAUSAL_LM"} | defaults | known_keys(where, given, Config))
        except (ValueError, TypeError) as error:
            raise Problem(f"params.yaml: {where}: {' '.join(str(error).split())[:200]}") from None
        if method == "adalora" and ({"r", "total_step"} & given.keys() or fields.target_r >= fields.init_r):
            raise Problem(
                f"params.yaml: {where}: adalora shrinks the ranks from init_r to a smaller target_r on average, "
                "over the steps of the run: leave out r and total_step"
            )
        return fields
    own = OWN_FIELDS.get(method, {})
    for key, value in given.items():
        if key not in own:
            raise Problem(f"params.yaml: {where}.{key} is not a key of {method}; it has {', '.join(own) or 'none'}")
        if not isinstance(value, int) or value < 1:
            raise Problem(f"params.yaml: {where}.{key}: expected a whole number of at least 1, found {value!r}")
    return own | given or None


def adapt(method: str, fields: Any, model: Any, tokenizer: Any) -> Any:
    """The model with only the method's weights left to train. `prompt` also adds its tokens to the tokenizer.

    New weights come from torch's global generator. Except for `prompt` and `prefix` the model still computes
    what it did. Problem when the model has no place for the method.
    """
    if method == "full":
        return model
    if method == "bitfit":
        return _only(_with_biases(model), lambda name: name.endswith(".bias"))
    if method == "bottleneck":
        return _only(_widened(model, fields["size"]), lambda name: ".beside." in name)
    if method == "head":
        return _only(_rebuilt(model, tie_word_embeddings=False), lambda name: name == "lm_head.weight")
    if method == "prompt":
        return _with_tokens(model, tokenizer, fields["tokens"])
    from peft import get_peft_model, prepare_model_for_kbit_training

    if method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for what transformers 5 renamed
        return get_peft_model(model, fields)


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
    return _narrowed(model) if method == "bottleneck" else model


def load_quantised(base: Path) -> Any:
    """The model of a folder in nf4, to train adapters on."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return load_model(base, AutoModelForCausalLM, quantization=nf4(dtype), dtype=dtype)


def save_adapter(model: Any, tokenizer: Any, path: Path) -> None:
    """Write what peft trained beside an unchanged base, whole or not at all. Stages that want a model refuse it."""
    with replaced_folder(path) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card


def trainable(model: Any) -> int:
    """How many numbers a model's optimiser would move."""
    return sum(getattr(p, "trained", p.numel()) for p in model.parameters() if p.requires_grad)


def _only(model: Any, is_trained: Any) -> Any:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    if not trainable(model):
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
    if any(name.endswith(".bias") for name, _ in model.named_parameters()):
        return model
    return _rebuilt(model, attention_bias=True, mlp_bias=True)


class Beside(nn.Module):
    """A feed-forward network and a small one of its kind, added: mlp(x) + beside(x)."""

    def __init__(self, mlp: Any, beside: Any) -> None:
        super().__init__()
        self.mlp, self.beside = mlp, beside

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) + self.beside(x)


def _widened(model: Any, size: int) -> Any:
    """Every block with `size` more hidden units, whose way back into the residual stream is 0 at first."""
    config = copy.deepcopy(model.config)
    config.intermediate_size = size
    layers = getattr(model.get_decoder(), "layers", [None])
    for layer in layers:
        mlp = getattr(layer, "mlp", None)
        if not all(hasattr(mlp, f"{name}_proj") for name in ("gate", "up", "down")):
            raise Problem(f"{config.model_type}: its feed-forward network is not gated; choose the method lora")
        beside = type(layer.mlp)(config).to(device=model.device, dtype=model.dtype)
        for name in ("gate_proj", "up_proj"):
            nn.init.normal_(getattr(beside, name).weight, std=config.initializer_range)
        nn.init.zeros_(beside.down_proj.weight)
        layer.mlp = Beside(layer.mlp, beside)
    return model


def _narrowed(model: Any) -> Any:
    """Two networks side by side are one wider network: gate and up get rows, down gets columns."""
    layers = model.get_decoder().layers
    size = layers[0].mlp.beside.gate_proj.out_features
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".mlp.beside." in name:
            continue
        if ".mlp.mlp." in name:
            other = model.state_dict()[name.replace(".mlp.mlp.", ".mlp.beside.")]
            if not name.endswith("down_proj.bias"):
                tensor = torch.cat([tensor, other], dim=1 if name.endswith("down_proj.weight") else 0)
            else:
                tensor = tensor + other
            name = name.replace(".mlp.mlp.", ".mlp.")
        tensors[name] = tensor
    config = copy.deepcopy(model.config)
    config.intermediate_size += size
    whole = type(model)(config).to(device=model.device, dtype=model.dtype)
    whole.load_state_dict(tensors)
    whole.generation_config = model.generation_config
    return whole.eval()


def _with_tokens(model: Any, tokenizer: Any, count: int) -> Any:
    """`count` new tokens that the chat template writes first; their rows of the embeddings are trained.

    A soft prompt as tokens of the vocabulary: engines without adapters serve it, and padding on the left stays
    without effect. They start as embeddings of tokens that are there (2104.08691, section 2). The output layer
    learns its rows of them too, or they might be sampled. The gradient of every other row is 0, which AdamW
    without weight decay leaves where it is.
    """
    from tokenizers import AddedToken

    known = len(tokenizer)
    names = [f"<|soft_{number}|>" for number in range(count)]
    if tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names]) != count:
        raise Problem(f"the tokenizer has {names[0]} already: the model has a soft prompt; start from its base")
    template, text = tokenizer.chat_template, "".join(names)
    end = found.end() if (found := BEGINS.match(template)) else 0
    tokenizer.chat_template = template[:end] + text + template[end:]
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    start = torch.randint(known, (count,))
    model.requires_grad_(False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = layer.weight
        with torch.no_grad():
            weight[known : known + count] = weight[start.to(weight.device)]
        if not weight.requires_grad:  # tied weights are one
            is_new = torch.zeros(len(weight), 1, device=weight.device)
            is_new[known : known + count] = 1
            weight.requires_grad_(True).register_hook(is_new.mul)
            weight.trained = count * weight.shape[1]
    return model
