"""Training few of a reward model's weights: low-rank updates and the head, or the head alone on fixed features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.lib.finetuning.lora import lora_config, refuse_modules
from tasks.lib.models.adapter_folder import Adapter, adapter_of, is_whole_difference
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
        from peft.tuners.tuners_utils import cast_adapter_dtype

        from tasks.lib.finetuning.merged_lora import merge_in_passes

        config = lora_config("reward.lora", lora, task_type="SEQ_CLS")
        refuse_modules("reward.lora", config, model.base_model)
        merge_in_passes(config)
        inject_adapter_in_model(config, model)
        cast_adapter_dtype(model, "default")  # float32, whatever the weights below are
    head(model).requires_grad_(True)


def merge(model: Any) -> Adapter | None:
    """Put low-rank updates into the weights, in place: an ordinary model again. Nothing to do without them.

    Returns what was trained, head included, if the model before and it are all of the model now.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not hasattr(model, "peft_config"):
        return None
    adapter = adapter_of(model, whole=["score"]) if is_whole_difference(model) else None
    layers = [(n, m) for n, m in model.base_model.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(model.base_model.get_submodule(parent), attribute, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
    return adapter
