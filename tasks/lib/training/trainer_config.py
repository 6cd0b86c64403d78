"""The configuration of a Trainer of transformers or TRL, from the section `trainer` of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.lib.models.precision import kept_dtype
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
    "logging_steps": "every step is logged",
    "logging_strategy": "every step is logged",
    "logging_first_step": "every step is logged",
    "eval_on_start": "the report has the figures before training",
    "load_best_model_at_end": "sft.keep chooses the weights, other stages keep the last",
    "metric_for_best_model": "the best is the one of the lowest loss",
    "greater_is_better": "the best is the one of the lowest loss",
    "save_only_model": "a killed run could not go on",
    "ignore_data_skip": "a killed run goes on with the rows that come next",
    "train_sampling_strategy": "rows are batched by length",
    "trust_remote_code": "no code of a model is run",
    "eos_token": "the tokenizer of models/base has it",
    "pad_token": "the tokenizer of models/base has it",
    "chat_template_path": "the tokenizer of models/base has it",
    "assistant_only_loss": "the loss is on the answer and its end alone",
    "completion_only_loss": "the loss is on the answer and its end alone",
    "dataset_kwargs": "rows are tokenized by the stage",
    "dataset_text_field": "rows are tokenized by the stage",
    "dataset_num_proc": "rows are tokenized by the stage",
    "shuffle_dataset": "rows are shuffled in every epoch",
    "eval_packing": "set sft.packing",
    "packing_strategy": "set sft.packing",
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


def autocast_of(base: Path, has_adapter: bool) -> dict[str, bool]:
    """The field for a Trainer that trains the model in the folder `base`: bf16 autocast if its weights are kept so.

    All weights are then trained as float32 masters. Under an adapter they are in bf16 themselves.
    """
    if has_adapter or kept_dtype(base) == torch.float32:
        return {}
    return {"bf16": True}
