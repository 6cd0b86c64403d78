"""sft: supervised fine-tuning on the answers of the curated instructions.

Reads   models/base, data/curated/{train,validation}.parquet, reports/check/sft_inputs.json
Writes  models/sft, reports/sft.json, reports/plots/sft.csv, reports/plots/sft.png
Run     python -m tasks.sft
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from tasks.lib.data.rows import Row, read_parquet
from tasks.lib.finetuning.adalora import allocating
from tasks.lib.finetuning.adapters import (
    CHANGED,
    count_trainable,
    fields_of,
    load_quantised,
    prepare_model,
    save_trained,
)
from tasks.lib.finetuning.base_knowledge import known_facts
from tasks.lib.finetuning.packing import (
    collator_of_packs,
    packed,
    refuse_unless_apart,
    takes_one_row,
    use_attention,
)
from tasks.lib.models.batches import budget_of
from tasks.lib.models.chat import IGNORED, all_example_ids, labels_of, load_tokenizer, preview
from tasks.lib.models.loading import load_policy
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.plots import curves
from tasks.lib.settings.methods import PEFT
from tasks.lib.settings.sft import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.distributed import is_first, is_sharded, world_size
from tasks.lib.training.hf_trainer import curve, stage_trainer, train
from tasks.lib.training.launching import under_launcher
from tasks.lib.training.muon import Muon
from tasks.lib.training.read_back import ROWS, rounding, save_as_trained
from tasks.lib.training.sharded import gathered, loading_place
from tasks.lib.training.trainer_config import autocast_of, configured

BASE, OUT = Path("models/base"), Path("models/sft")
TRAIN, VALIDATION = Path("data/curated/train.parquet"), Path("data/curated/validation.parquet")
OF_FOUR_BITS = 0.3  # nats per token between a base of four bits, trained on, and its own weights, written
FIGURES = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "eval_mean_token_accuracy": "validation_accuracy",
}
PANELS = {"Loss per trained token": ["loss", "validation_loss"], "Token accuracy": ["validation_accuracy"]}


def run(params: Params, stage: Stage) -> None:
    # 1. Settings first: a wrong one should not cost a minute.
    config = trainer_config(params, stage)
    fields = fields_of("sft.adapter", params.method, params.adapter)

    # 2. The model, frozen but for what the method trains.
    tokenizer = load_tokenizer(BASE)
    dtype = None if params.method in PEFT else torch.float32  # adapters stand on the weights as they are kept
    model = load_quantised(BASE) if params.method == "qlora" else load_policy(BASE, dtype=dtype, on=loading_place())
    knowledge = base_knowledge(params, stage, model, tokenizer, config.per_device_eval_batch_size)
    torch.manual_seed(stage.seed_of("adapter"))
    model = prepare_model(params.method, fields, model, tokenizer)
    if params.attention:
        use_attention(model, params.attention)

    # 3. Rows become ids with labels on the answer and the EOS. A row that is too long is dropped, never cut.
    rows, too_long = tokenized_instructions(tokenizer, TRAIN, config.max_length, params.tasks)
    held_out, held_out_too_long = tokenized_instructions(tokenizer, VALIDATION, config.max_length, params.tasks)
    for row in rows[: params.preview_rows]:
        print("sft:", preview(tokenizer, row["input_ids"], [label != IGNORED for label in row["labels"]]))
    print(f"sft: {len(rows)} rows; {too_long} dropped, longer than {config.max_length} tokens", flush=True)
    sequences = packed(rows, config.max_length) if params.packing else rows

    # 4. Train. The loss is the mean over the trained tokens of the whole effective batch.
    batch_tokens = tokens_per_batch(params, config, sequences)
    trainer = made_trainer(params, config, model, tokenizer, sequences, held_out, batch_tokens)
    inputs = {str(BASE): weights_hash(BASE), str(TRAIN): file_hash(TRAIN), str(VALIDATION): file_hash(VALIDATION)}
    fingerprint = {"params": params.model_dump(), "seed": stage.seed, "inputs": inputs}
    log = train(trainer, stage, fingerprint, {"loss": "loss", "eval_loss": "validation"}, patience=params.patience)
    trainable_parameters = count_trainable(trainer.model)

    # 5. An adapter is saved as it is, what else was trained as part of the weights. Sharded weights are gathered into
    #    an untrained copy.
    model = gathered(
        trainer, lambda: prepare_model(params.method, fields, load_policy(BASE, dtype=dtype, on="cpu"), tokenizer)
    )
    if not is_first():
        return
    save_checked(params, config, model, tokenizer, held_out)
    steps = curve(log, FIGURES)
    curves(Path("reports/plots/sft"), steps, "step", PANELS)
    report: dict[str, Any] = {
        "rows": len(rows),
        "rows_too_long": too_long,
        "validation_rows": len(held_out),
        "validation_rows_too_long": held_out_too_long,
        **knowledge,
        **token_figures(rows),
    }
    if batch_tokens:
        report["batch_tokens"] = batch_tokens
    if params.packing:
        report["packed_rows"] = len(sequences)
    report["method"] = params.method
    report["trainable_parameters"] = trainable_parameters
    report["steps"] = trainer.state.global_step
    report["epochs"] = trainer.state.epoch
    stage.report(report | loss_figures(steps, params.keep))
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def trainer_config(params: Params, stage: Stage) -> Any:
    """TRL's configuration. Problem for a bad field, and for what cannot be had of a model that processes share out."""
    from trl import SFTConfig

    config = configured(
        SFTConfig,
        stage,
        params.trainer,
        eval_on_start=True,
        **autocast_of(BASE, params.method in PEFT),
        load_best_model_at_end=params.keep == "best",
        metric_for_best_model="eval_loss",
    )
    if params.optimizer == "muon" and is_sharded():
        raise Problem("params.yaml: sft.optimizer: muon needs whole matrices; with FSDP or ZeRO use `trainer`")
    if params.method == "adalora" and is_sharded():
        raise Problem("params.yaml: sft.method: adalora needs whole matrices; with FSDP or ZeRO use lora")
    return config


def base_knowledge(params: Params, stage: Stage, model: Any, tokenizer: Any, batch_size: int) -> dict[str, float]:
    """Figures of what the base model knows of the training facts, named `base_...`; none if nothing is asked."""
    if not params.known_facts or is_sharded():  # no process has the whole base model then
        return {}
    rows = read_parquet(TRAIN, ["row", "messages", "answer"])
    seed = stage.seed_of("known")
    figures = known_facts(model, tokenizer, rows, params.known_facts, batch_size=batch_size, seed=seed)
    return {f"base_{name}": value for name, value in figures.items()}


def tokenized_instructions(
    tokenizer: Any, path: Path, max_length: int | None, tasks: Sequence[str] = ()
) -> tuple[list[Row], int]:
    """Rows {row, id, input_ids, labels} of some tasks (none named: all), and how many were too long."""
    given = read_parquet(path, ["id", "messages", "answer", "task"])
    known = sorted({row["task"] for row in given})
    for task in sorted(tasks):
        if task not in known:
            raise Problem(f"{path}: sft.tasks: no rows of {task}; there are {', '.join(known)}")
    if tasks:
        given = [row for row in given if row["task"] in tasks]
    rows: list[Row] = []
    for row, (ids, is_answer) in zip(given, all_example_ids(tokenizer, given, path), strict=True):
        if max_length is None or len(ids) <= max_length:
            labels = labels_of(ids, is_answer)
            rows.append({"row": len(rows), "id": row["id"], "input_ids": ids, "labels": labels})
    if not rows:
        reason = f"all {len(given)} are longer than sft.trainer.max_length = {max_length}"
        raise Problem(f"{path}: no rows to use: {reason if given else 'it is empty'}")
    return rows, len(given) - len(rows)


def tokens_per_batch(params: Params, config: Any, sequences: Sequence[Row]) -> int | None:
    """Tokens of a batch as the section says; by `auto` those that suit the lengths. None for a number of rows."""
    if params.batch_tokens != "auto":
        return params.batch_tokens
    if world_size() > 1:  # a number of tokens has not been tried there
        return None
    tokens = budget_of([len(row["input_ids"]) for row in sequences], config.per_device_train_batch_size)
    if tokens:
        print(f"sft: rows of very different lengths: {tokens} tokens a batch (sft.batch_tokens: null counts rows)")
    return tokens


def made_trainer(
    params: Params,
    config: Any,
    model: Any,
    tokenizer: Any,
    sequences: list[Row],
    held_out: list[Row],
    batch_tokens: int | None,
) -> Any:
    """TRL's trainer for rows, or for packs of them, and the method."""
    from datasets import Dataset
    from trl import SFTTrainer

    collator = None  # TRL's
    if params.packing:
        refuse_unless_apart(model, sequences[0])
        collator = collator_of_packs(0, as_one_row=takes_one_row(model))
    optimizer = None  # TRL's, by the fields of `trainer`
    if params.optimizer == "muon":
        decay = {"weight_decay": config.weight_decay} if "weight_decay" in params.trainer else {}
        optimizer = Muon(model, config.learning_rate, **decay)
    Trainer = stage_trainer(allocating(SFTTrainer) if params.method == "adalora" else SFTTrainer)
    return Trainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        optimizers=(optimizer, None),
        train_dataset=Dataset.from_list(sequences),
        eval_dataset=Dataset.from_list(held_out),
        data_collator=collator,
        lengths=[len(row["input_ids"]) for row in sequences],
        ids=[row["id"] for row in sequences],
        batch_tokens=batch_tokens,
        spike=params.spike,
    )


def save_checked(params: Params, config: Any, model: Any, tokenizer: Any, held_out: Sequence[Row]) -> None:
    """Write what was trained, and read it back where that can be: held-out rows have the loss that they had."""

    def save() -> None:
        save_trained(params.method, model, tokenizer, BASE, OUT)

    if params.method == "prefix":
        save()
        return
    is_quantised = params.method == "qlora"
    save_as_trained(
        save,
        OUT,
        model,
        [row["input_ids"] for row in held_out[:ROWS]],
        BASE,
        meant=CHANGED.get(params.method, ()),
        tolerance=OF_FOUR_BITS if is_quantised else rounding(config),
        read_on="cpu" if is_quantised else None,
    )


def token_figures(rows: Sequence[Row]) -> dict[str, int]:
    """How many tokens are trained, and how long the rows are."""
    lengths = sorted(len(row["input_ids"]) for row in rows)
    return {
        "trained_tokens": sum(len(row["labels"]) - row["labels"].count(IGNORED) for row in rows),
        "row_tokens.median": lengths[len(lengths) // 2],
        "row_tokens.p95": lengths[int(0.95 * (len(lengths) - 1))],
        "row_tokens.longest": lengths[-1],
    }


def loss_figures(steps: Sequence[dict[str, float]], keep: str) -> dict[str, Any]:
    """Losses at the beginning and at the end, and of the step whose weights are kept."""
    losses = [row["loss"] for row in steps if "loss" in row]
    evaluated = [row for row in steps if "validation_loss" in row]
    best = min(evaluated, key=lambda row: row["validation_loss"])
    kept = best if keep == "best" else evaluated[-1]
    return {
        "loss_first": losses[0],
        "loss_last": mean(losses[-20:]),
        "validation_loss_before": evaluated[0]["validation_loss"],
        "validation_loss": kept["validation_loss"],
        "validation_accuracy": kept["validation_accuracy"],
        "kept": keep,
        "kept_step": kept["step"],
        "best_step": best["step"],
        "best_validation_loss": best["validation_loss"],
    }


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
