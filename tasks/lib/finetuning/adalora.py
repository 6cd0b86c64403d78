"""AdaLoRA (arXiv 2303.10512): low-rank updates P diag(E) Q whose ranks go where they matter most.

peft has the layers and the allocator of ranks. Here is what it leaves to a training loop: the steps of the schedule,
the orthogonality of P and Q (eq. 4) added to a loss that is computed outside the model, and a checkpoint of all that
changes: the triplets that are switched off but may come back, the moving averages of their importance, the ranks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from tasks.lib.stage import Problem

FILE = "ranks.safetensors"
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # peft's names: importance of a weight, and how uncertain it is


def orthogonality(model: Any) -> Tensor:
    """The mean of ||P'P - I|| and ||QQ' - I|| (Frobenius) over all matrices, as peft takes it."""
    distances = []
    for name, p in _adapters(model).items():
        if "lora_E" in name:  # the diagonal
            continue
        gram = p @ p.T if "lora_A" in name else p.T @ p  # (r, r)
        distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=p.device)))
    return torch.stack(distances).mean()


def schedule(config: Any, steps: int) -> None:
    """Ranks shrink after `tinit` steps and stay for the last `tfinal`; -1: a tenth and a half of `steps`."""
    config.total_step = steps
    if config.tinit < 0:
        config.tinit = steps // 10
    if config.tfinal < 0:
        config.tfinal = steps // 2
    if config.tinit >= steps - config.tfinal:
        raise Problem(
            f"sft.adapter: tinit {config.tinit} and tfinal {config.tfinal} leave none of {steps} steps to "
            "shrink the ranks in; make them smaller"
        )


def save_ranks(model: Any, folder: Path) -> None:
    """Write everything of an AdaLoRA model that a step changes and peft's own checkpoint drops."""
    allocator, config = model.base_model.rankallocator, model.peft_config["default"]
    values: dict[str, dict[str, Tensor]] = {"weight": _adapters(model)}
    for kind in AVERAGES:
        values[kind] = getattr(allocator, kind)
    tensors: dict[str, Tensor] = {}
    for kind, of_kind in values.items():
        for name, value in of_kind.items():
            tensors[f"{kind}/{name}"] = value.detach().cpu().contiguous().clone()
    save_file(tensors, folder / FILE, metadata={"rank_pattern": json.dumps(config.rank_pattern)})


@torch.no_grad()
def load_ranks(model: Any, folder: Path) -> None:
    """Put back what `save_ranks` wrote."""
    allocator, adapters = model.base_model.rankallocator, _adapters(model)
    allocator.reset_ipt()
    with safe_open(folder / FILE, "pt") as file:
        model.peft_config["default"].rank_pattern = json.loads(file.metadata()["rank_pattern"])
        for key in file.keys():  # noqa: SIM118, not a dict
            kind, name = key.split("/", 1)
            value = file.get_tensor(key)
            if kind == "weight":
                adapters[name].copy_(value)
            else:
                weight = adapters[f"base_model.model.{name}"]  # peft's allocator names weights as the inner model does
                getattr(allocator, kind)[name] = value.to(weight.device)
                allocator.ipt[name] = torch.zeros_like(weight)


def allocating(Base: Any) -> Any:
    """The trainer class `Base` for a model of `prepare_model("adalora", ...)`."""

    class Allocating(Base):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.add_callback(_Ranks(self.model))

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
            result = super().compute_loss(model, inputs, *args, **settings)
            if not self.model.training:
                return result
            # the gradient of the regulariser, not its value: the loss stays the one per trained token
            term = orthogonality(self.model) * self.model.peft_config["default"].orth_reg_weight
            return result + (term - term.detach()) / self.current_gradient_accumulation_steps

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            load_ranks(self.model, Path(resume_from_checkpoint))

        def _load_best_model(self) -> None:
            load_ranks(self.model, Path(self.state.best_model_checkpoint))

    return Allocating


class _Ranks(TrainerCallback):
    def __init__(self, model: Any) -> None:
        self.model = model

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        schedule(self.model.peft_config["default"], state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.base_model.update_and_allocate(state.global_step + 1)  # the gradients are still there

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            save_ranks(self.model, Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _adapters(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}
