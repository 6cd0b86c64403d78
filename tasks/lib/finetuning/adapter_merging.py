"""Several adapters on one base: switched by name, or merged into one model with weights.

An adapter is a folder as `sft` writes it to models/sft; `base.json` in it says which base it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import BASE, origin_of, weights_hash
from tasks.lib.models.precision import kept_dtype
from tasks.lib.stage import Problem


def load_adapters(base: Path, adapters: Mapping[str, Path]) -> Any:
    """The model of `base` with every adapter under its name; `model.set_adapter(name)` switches, the first is on.

    Problem for a folder without an adapter, or with one that was trained on other weights.
    """
    from peft import PeftModel

    model: Any = load_policy(base)
    expected = weights_hash(base)
    for name, folder in adapters.items():
        if not (folder / "adapter_config.json").is_file():
            raise Problem(f"{folder}: no adapter_config.json; sft.method lora writes it to models/sft")
        if (folder / BASE).is_file() and origin_of(folder)["weights"] != expected:
            raise Problem(f"{folder}: was trained on another base than {base}; name that one")
        if isinstance(model, PeftModel):
            try:
                model.load_adapter(str(folder), name)
            except ValueError as error:  # another kind than the first
                raise Problem(f"{folder}: cannot be combined with the others: {str(error)[:160]}") from None
        else:
            model = PeftModel.from_pretrained(model, str(folder), name)
    return model.eval()


@torch.no_grad()
def merge_adapters(base: Path, weighted: Mapping[Path, float], into: Path) -> None:
    """Write the model W + sum of w_i dW_i of low-rank updates dW_i; they may differ in rank and scale.

    Problem for an adapter that is not a sum of updates (DoRA, (IA)^3), or that trained other weights as well.
    """
    whole = load_policy(base, dtype=torch.float32)  # rounded once, after the last sum
    for folder, share in weighted.items():
        adapted = load_adapters(base, {"default": folder})
        config = adapted.peft_config["default"]
        is_sum = hasattr(config, "lora_alpha") and not config.use_dora
        if not is_sum or config.modules_to_save or config.bias != "none":
            raise Problem(f"{folder}: only low-rank updates can be added up (lora, adalora, qlora; no DoRA)")
        for name, layer in adapted.get_base_model().named_modules():
            if hasattr(layer, "get_delta_weight"):
                weight = whole.get_submodule(name).weight
                weight += share * layer.get_delta_weight("default").to(weight)
    save_model(whole, load_tokenizer(base), into, dtype=kept_dtype(base))
