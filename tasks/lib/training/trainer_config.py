"""The configuration of a Trainer of transformers or TRL, from the section `trainer` of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tasks.lib.stage import Problem, Stage, known_keys

OWNED = {
    "output_dir": "checkpoints are in .anneal/checkpoints",
    "seed": "set the shared key seed",
    "data_seed": "set the shared key seed",
    "packing": "set sft.packing",
    "padding_free": "rows are batched by length instead",
    "remove_unused_columns": "the stage needs its columns",
    "resume_from_checkpoint": "a killed run is resumed by itself",
    "save_strategy": "use save_steps",
    "use_cpu": "the GPU is used when there is one",
    "model_init_kwargs": "the model is loaded by the stage",
    "push_to_hub": "a release is a folder",
    "truncation_mode": "rows that are too long are dropped, never cut",
}
DEFAULTS: dict[str, Any] = {
    "logging_steps": 1,  # so that a checkpoint at any step holds the whole log
    "save_steps": 100,
    "eval_steps": 50,
    "eval_strategy": "steps",
    "save_total_limit": 2,  # the newest may be half-written
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
}
ON_A_CPU = {"bf16": False, "activation_checkpointing": False, "dataloader_pin_memory": False}  # unless they are set


def configured(Config: type, stage: Stage, given: Mapping[str, Any], **defaults: Any) -> Any:
    """A config of the class `Config`: `given` over the stage's `defaults` over those of all stages.

    Problem for a key that `Config` does not have or that a stage sets itself, and for a value that it does not take.
    """
    where = f"{stage.name.split('/')[0]}.trainer"
    for key in known_keys(where, given, Config):
        if key in OWNED:
            raise Problem(f"params.yaml: {where}.{key} cannot be set here: {OWNED[key]}")
    given = dict(given)
    if (
        "gradient_checkpointing" in given
    ):  # the name in TRL's documentation; transformers takes both, and prefers its own
        given.setdefault("activation_checkpointing", given.pop("gradient_checkpointing"))
    settings = DEFAULTS | defaults | given
    settings["output_dir"] = str(stage.checkpoints)
    settings["seed"] = stage.seed_of("trainer")
    settings["remove_unused_columns"] = False
    if not torch.cuda.is_available():
        settings = ON_A_CPU | settings | {"use_cpu": True}
    try:
        return Config(**settings)
    except (ValueError, TypeError) as error:
        raise Problem(f"params.yaml: {where}: {str(error).splitlines()[0][:200]}") from None
