"""What training by either method needs and leaves behind: its rows, its checkpoints' fingerprint, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tasks.lib.data.rows import Row
from tasks.lib.finetuning.lora import lora_config, refuse_modules
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.settings.dpo import Params
from tasks.lib.stage import Stage, file_hash
from tasks.lib.training.sharded import loading_place

FIGURES = {  # in TRL's log: in our curves
    "loss": "loss",
    "eval_loss": "heldout_loss",
    "rewards/accuracies": "accuracy",
    "eval_rewards/accuracies": "heldout_accuracy",
    "rewards/margins": "margin",
    "eval_rewards/margins": "heldout_margin",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}
PROGRESS = {"loss": "loss", "rewards/margins": "margin", "eval_rewards/accuracies": "held-out accuracy"}
LAST = 20  # steps whose mean is a figure of the end of training


@dataclass(frozen=True)
class TokenizedFile:
    """A file's pairs or answers as token ids."""

    rows: list[Row]
    too_long: int  # how many more there were
    figures: dict[str, int]  # of what they were made of, for the report


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy after training, and what is reported of it."""

    trainer: Any
    tokenizer: Any
    lora: Any  # peft's LoraConfig; None where all weights were trained
    trainable_parameters: int  # counted before an adapter is merged, after which there are none
    log: list[dict[str, Any]]
    kind: str  # what a row is: pairs, or answers
    train: TokenizedFile
    held_out: TokenizedFile
    panels: dict[str, list[str]]  # of the plot: title -> curves

    def data_figures(self) -> dict[str, int]:
        """How many rows there were."""
        return {
            self.kind: len(self.train.rows),
            **self.train.figures,
            f"{self.kind}_too_long": self.train.too_long,
            f"heldout_{self.kind}": len(self.held_out.rows),
            f"heldout_{self.kind}_too_long": self.held_out.too_long,
        }

    def training_figures(self, steps: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Figures of the first steps, of the last ones, and of the held-out rows at the end; `steps`: its curves."""
        trained_steps = [step for step in steps if "loss" in step]
        losses = [step["loss"] for step in trained_steps]
        figures: dict[str, Any] = {
            "trainable_parameters": self.trainable_parameters,
            "steps": self.trainer.state.global_step,
            "epochs": self.trainer.state.epoch,
            "loss_first": losses[0],
            "loss_last": mean(losses[-LAST:]),
        }
        for name in ("accuracy", "margin"):  # KTO has no accuracy, and a batch of one kind no margin
            values = [step[name] for step in trained_steps if name in step]
            if values:
                figures[f"{name}_last"] = mean(values[-LAST:])
        evaluated = [step for step in steps if "heldout_loss" in step][-1]
        for name in ("heldout_loss", "heldout_accuracy", "heldout_margin"):
            if name in evaluated:
                figures[name] = evaluated[name]
        return figures

    def held_out_sequences(self) -> list[list[int]]:
        """The held-out prompts with a good answer to each pair, or with the one that was rated, as ids."""
        sequences: list[list[int]] = []
        for row in self.held_out.rows:
            sequences.append([*row["prompt_ids"], *row["chosen_ids" if self.kind == "pairs" else "completion_ids"]])
        return sequences

    def held_out_prompts(self) -> list[tuple[int, ...]]:
        """The prompts of the held-out rows as ids, each once."""
        return list(dict.fromkeys(tuple(row["prompt_ids"]) for row in self.held_out.rows))


def lora_of(params: Params) -> Any:
    """peft's configuration of the adapter that is trained; None where all weights are."""
    if params.lora is None:
        return None
    needs_base = "the reference is the policy with its adapter off"
    return lora_config("dpo.lora", params.lora, needs_base=needs_base, task_type="CAUSAL_LM")


def load_sft(folder: Path, lora: Any) -> tuple[Any, Any]:
    """Tokenizer and model that training begins with. All weights are trained in float32; an adapter stands on the
    weights as they are kept. Problem for an adapter on modules that the model lacks or shares."""
    model = load_policy(folder, dtype=torch.float32 if lora is None else None, on=loading_place())
    if lora is not None:
        refuse_modules("dpo.lora", lora, model)
    return load_tokenizer(folder), model


def fingerprint(params: Params, stage: Stage, model: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Everything that decides the result: a checkpoint with another fingerprint is not resumed."""
    inputs = {str(model): weights_hash(model)}
    for path in files:
        inputs[str(path)] = file_hash(path)
    return {"params": params.model_dump(), "seed": stage.seed, "inputs": inputs}


def count_trainable(model: Any) -> int:
    """How many numbers the optimiser moves."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def pad_id(tokenizer: Any) -> int:
    """The token that fills up a batch."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
