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

from tasks.lib.data.rows import read_parquet
from tasks.lib.finetuning.adalora import allocating
from tasks.lib.finetuning.adapter_merging import keep_adapter
from tasks.lib.finetuning.adapters import (
    MERGED,
    adapt,
    fields_of,
    load_quantised,
    merged,
    save_adapter,
    trainable,
)
from tasks.lib.finetuning.base_knowledge import known_facts
from tasks.lib.finetuning.packing import (
    collator,
    packed,
    refuse_unless_apart,
    takes_one_row,
    use_attention,
)
from tasks.lib.models.chat import IGNORED, all_example_ids, labels_of, load_tokenizer, preview
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.plots import curves
from tasks.lib.settings.sft import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.distributed import is_first, is_sharded
from tasks.lib.training.hf_trainer import curve, stage_trainer, train
from tasks.lib.training.launching import under_launcher
from tasks.lib.training.muon import Muon
from tasks.lib.training.sharded import gathered, loading_place
from tasks.lib.training.trainer_config import configured

BASE, OUT = Path("models/base"), Path("models/sft")
TRAIN, VALIDATION = Path("data/curated/train.parquet"), Path("data/curated/validation.parquet")
FIGURES = {
    "loss": "loss",
    "eval_loss": "validation_loss",
    "eval_mean_token_accuracy": "validation_accuracy",
}


def run(params: Params, stage: Stage) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    # 1. Settings first: a wrong one should not cost a minute.
    keep = {"load_best_model_at_end": params.keep == "best", "metric_for_best_model": "eval_loss"}
    config = configured(SFTConfig, stage, params.trainer, eval_on_start=True, **keep)
    if params.optimizer == "muon" and is_sharded():
        raise Problem("params.yaml: sft.optimizer: muon needs whole matrices; with FSDP or ZeRO use `trainer`")
    if params.method == "adalora" and is_sharded():
        raise Problem("params.yaml: sft.method: adalora needs whole matrices; with FSDP or ZeRO use lora")
    fields = fields_of("sft.adapter", params.method, params.adapter)

    # 2. The model, frozen but for what the method trains.
    tokenizer = load_tokenizer(BASE)
    model = load_quantised(BASE) if params.method == "qlora" else load_policy(BASE, on=loading_place())
    facts = 0 if is_sharded() else params.known_facts  # no process has the whole base model then
    asked = read_parquet(TRAIN, ["row", "messages", "answer"]) if facts else []
    knew = known_facts(
        model,
        tokenizer,
        asked,
        facts,
        batch_size=config.per_device_eval_batch_size,
        seed=stage.seed_of("known"),
    )
    torch.manual_seed(stage.seed_of("adapter"))
    model = adapt(params.method, fields, model, tokenizer)

    # 3. Rows become ids with labels on the answer and the EOS. A row that is too long is dropped, never cut.
    rows, too_long = tokenised(tokenizer, TRAIN, config.max_length, params.tasks)
    held_out, held_out_too_long = tokenised(tokenizer, VALIDATION, config.max_length, params.tasks)
    for row in rows[: params.preview_rows]:
        print("sft:", preview(tokenizer, row["input_ids"], [label != IGNORED for label in row["labels"]]))
    print(f"sft: {len(rows)} rows; {too_long} dropped, longer than {config.max_length} tokens", flush=True)
    if params.attention:
        use_attention(model, params.attention)
    sequences, batches = rows, {}
    if params.packing:
        sequences = packed(rows, config.max_length)
        refuse_unless_apart(model, sequences[0])
        batches = {"data_collator": collator(0, as_one_row=takes_one_row(model))}

    # 4. Train. The loss is the mean over the trained tokens of the whole effective batch.
    trainer = stage_trainer(allocating(SFTTrainer) if params.method == "adalora" else SFTTrainer)(
        model=model,
        args=config,
        processing_class=tokenizer,
        optimizers=(Muon(model, config.learning_rate) if params.optimizer == "muon" else None, None),
        train_dataset=Dataset.from_list(sequences),
        eval_dataset=Dataset.from_list(held_out),
        lengths=[len(row["input_ids"]) for row in sequences],
        ids=[row["id"] for row in sequences],
        batch_tokens=params.batch_tokens,
        spike=params.spike,
        **batches,
    )
    inputs = {str(BASE): weights_hash(BASE), **{str(path): file_hash(path) for path in (TRAIN, VALIDATION)}}
    fingerprint = {"params": params.model_dump(), "seed": stage.seed, "inputs": inputs}
    log = train(trainer, stage, fingerprint, {"loss": "loss", "eval_loss": "validation"}, patience=params.patience)

    # 5. What was trained becomes part of the weights: the model is an ordinary one again.
    trained_parameters = trainable(trainer.model)
    model = gathered(trainer, lambda: adapt(params.method, fields, load_policy(BASE, on="cpu"), tokenizer))
    if not is_first():
        return
    if params.keep_adapter:
        keep_adapter(model, tokenizer, BASE, stage.checkpoints / "adapter")
    trained = merged(params.method, model, BASE)
    steps = curve(log, FIGURES)
    lengths = sorted(len(row["input_ids"]) for row in rows)
    losses = [row["loss"] for row in steps if "loss" in row]
    evaluated = [row for row in steps if "validation_loss" in row]
    least = min(evaluated, key=lambda row: row["validation_loss"])
    kept = least if params.keep == "best" else evaluated[-1]
    if params.method in MERGED:
        save_model(trained, tokenizer, OUT)
    else:
        save_adapter(trained, tokenizer, OUT)
    if params.keep_adapter:
        (stage.checkpoints / "adapter").replace(OUT / "adapter")
    curves(
        Path("reports/plots/sft"),
        steps,
        "step",
        {"Loss per trained token": ["loss", "validation_loss"], "Token accuracy": ["validation_accuracy"]},
    )
    stage.report(
        {
            "rows": len(rows),
            "rows_too_long": too_long,
            "validation_rows": len(held_out),
            "validation_rows_too_long": held_out_too_long,
            **{f"base_{name}": value for name, value in knew.items()},
            "trained_tokens": sum(label != IGNORED for row in rows for label in row["labels"]),
            "row_tokens.median": lengths[len(lengths) // 2],
            "row_tokens.p95": lengths[int(0.95 * (len(lengths) - 1))],
            "row_tokens.longest": lengths[-1],
            **({"packed_rows": len(sequences)} if params.packing else {}),
            "method": params.method,
            "trainable_parameters": trained_parameters,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "loss_first": losses[0],
            "loss_last": mean(losses[-20:]),
            "validation_loss_before": evaluated[0]["validation_loss"],
            "validation_loss": kept["validation_loss"],
            "validation_accuracy": kept["validation_accuracy"],
            "kept": params.keep,
            "kept_step": kept["step"],
            "best_step": least["step"],
            "best_validation_loss": least["validation_loss"],
        }
    )
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def tokenised(
    tokenizer: Any, path: Path, max_length: int | None, tasks: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], int]:
    """Rows with `input_ids` and `labels`, and how many were left out because they are too long."""
    rows: list[dict[str, Any]] = []
    given = read_parquet(path, ["id", "messages", "answer", "task"])
    there = sorted({row["task"] for row in given})
    if unknown := sorted({*tasks} - {*there}):
        raise Problem(f"{path}: sft.tasks: no rows of {unknown[0]}; there are {', '.join(there)}")
    given = [row for row in given if not tasks or row["task"] in tasks]
    examples = all_example_ids(tokenizer, given, path)
    for row, (ids, is_answer) in zip(given, examples, strict=True):
        if max_length is None or len(ids) <= max_length:
            labels = labels_of(ids, is_answer)
            rows.append({"row": len(rows), "id": row["id"], "input_ids": ids, "labels": labels})
    if not rows:
        reason = f"all {len(given)} are longer than sft.trainer.max_length = {max_length}"
        raise Problem(f"{path}: no rows to use: {reason if given else 'it is empty'}")
    return rows, len(given) - len(rows)


if __name__ == "__main__":
    main(__file__, Params, under_launcher(run))
