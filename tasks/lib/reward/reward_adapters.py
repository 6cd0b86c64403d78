"""Training few of a reward model's weights: low-rank updates and the head, or the head alone on fixed features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.lib.finetuning.lora import lora_config, refuse_modules
from tasks.lib.reward.reward_model import head
from tasks.lib.settings.methods import HeadMethod


def adapt(model: Any, method: HeadMethod, lora: Mapping[str, Any]) -> None:
    """Freeze what `method` does not train, in place; `lora` are fields of peft.LoraConfig for that method.

    Low-rank updates (arXiv 2106.09685) begin at zero: the first rewards are those of the model as it is.
    """
    if method == "full":
        return
    model.requires_grad_(False)
    if method == "lora":
        from peft import inject_adapter_in_model

        from tasks.lib.finetuning.merged_lora import merge_in_passes

        config = lora_config("reward.lora", lora)
        refuse_modules("reward.lora", config, model.base_model)
        merge_in_passes(config)
        inject_adapter_in_model(config, model.base_model)
    head(model).requires_grad_(True)


def merge(model: Any) -> None:
    """Put low-rank updates into the weights, in place: an ordinary model again. Nothing to do without them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(n, m) for n, m in model.base_model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.base_model.get_submodule(parent), attribute, layer.get_base_layer())
    if hasattr(model.base_model, "peft_config"):
        del model.base_model.peft_config
    model.requires_grad_(True)
