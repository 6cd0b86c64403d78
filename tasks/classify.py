"""classify: a classification or regression head on a decoder or an encoder, one model per name in classify.tasks.

No name, no stage: the line's own graph has none.

Reads   classify.model; the rows of the task: data/curated and its check, or a table of texts and labels
Writes  models/classify/<task>, reports/classify/<task>.json, reports/plots/classify/<task>.{csv,png}
Run     python -m tasks.classify mood
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from tasks.lib.data.labels import Labelled, classes, majority, read_labelled
from tasks.lib.evaluation.classification import classification_figures, regression_figures
from tasks.lib.finetuning.adapters import merged, trainable
from tasks.lib.finetuning.classifier import (
    adapt,
    collator,
    load_classifier,
    predicted,
    room,
    summed_loss,
    token_ids,
)
from tasks.lib.models.loading import save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.plots import curves
from tasks.lib.settings.classify import Params
from tasks.lib.stage import Problem, Stage, file_hash, main
from tasks.lib.training.hf_trainer import curve, stage_trainer, train
from tasks.lib.training.trainer_config import configured


def run(params: Params, stage: Stage) -> None:
    learn(params, stage, sys.argv[1:])


def learn(params: Params, stage: Stage, arguments: list[str]) -> None:
    from transformers import Trainer, TrainingArguments

    # 1. Which task, and its settings: a wrong one should not cost a minute.
    if len(arguments) != 1 or arguments[0] not in params.tasks:
        known = ", ".join(params.tasks) or "none yet: add one to classify.tasks"
        raise Problem(f"classify: expected one task of {known}; found {' '.join(arguments) or 'none'}")
    name, task = arguments[0], params.tasks[arguments[0]]
    stage = replace(stage, name=f"{stage.name}/{name}")
    config = configured(TrainingArguments, stage, params.trainer, eval_on_start=True, prediction_loss_only=True)

    # 2. Rows, and the labels that they have.
    is_regression = task.objective == "regression"
    splits = read_labelled(task.rows, name, is_regression)
    labels = [] if is_regression else classes(splits, name)
    numbers = [row.number for row in splits["train"]]
    mean, std = (fmean(numbers), pstdev(numbers)) if is_regression else (0.0, 1.0)
    if not std:
        raise Problem(f"classify.tasks.{name}: every training row has the label {mean:g}; nothing to learn")

    # 3. The model, frozen but for what the method trains.
    model, tokenizer, new = load_classifier(params.model, labels, params.method, stage.seed_of("head"))
    limit = min((n for n in (params.max_length, room(model)) if n), default=None)
    model = adapt(model, params.method, params.lora, new)
    tokens = {split: tokenised(tokenizer, rows, limit) for split, rows in splits.items()}

    def examples(split: str) -> list[dict[str, Any]]:
        rows, ids = zip(*tokens[split], strict=True)
        targets = [(r.number - mean) / std if is_regression else labels.index(r.label) for r in rows]
        return [{"row": number, "input_ids": ids[number], "labels": target} for number, target in enumerate(targets)]

    # 4. Train. The loss is the mean over the rows of the effective batch.
    trainer = stage_trainer(Trainer)(
        model=model,
        args=config,
        data_collator=collator(tokenizer.pad_token_id),
        compute_loss_func=summed_loss(config.label_smoothing_factor),
        train_dataset=examples("train"),
        eval_dataset=examples("validation"),
        lengths=[len(ids) for _, ids in tokens["train"]],
        ids=[row.where for row, _ in tokens["train"]],
    )
    files = sorted(task.rows.glob("*.parquet")) if task.rows.is_dir() else [task.rows]
    inputs = {
        str(params.model): weights_hash(params.model),
        **{str(file): file_hash(file) for file in files},
    }
    settings = params.model_dump(mode="json", exclude={"tasks"}) | {"task": task.model_dump(mode="json")}
    fingerprint = {"params": settings, "seed": stage.seed, "inputs": inputs}
    log = train(trainer, stage, fingerprint, {"loss": "loss", "eval_loss": "validation"})
    steps = curve(log, {"loss": "loss", "eval_loss": "validation_loss"})

    # 5. Judge it on held-out rows, beside a guess that reads nothing.
    held_out = [row for row, _ in tokens["test"]]
    outputs = predicted(trainer.model, [ids for _, ids in tokens["test"]], batch_size=config.eval_batch_size)
    seed = stage.seed_of("bootstrap")
    if is_regression:
        targets, said = [row.number for row in held_out], (outputs[:, 0] * std + mean).tolist()
        figures = regression_figures(targets, said, numbers, seed=seed)
        better, blind = figures["mae"] < figures["median_mae"], "the median of the training rows"
    else:
        named = [labels[number] for number in outputs.argmax(-1).tolist()]
        figures = classification_figures([row.label for row in held_out], named, majority(splits["train"]), seed=seed)
        better, blind = figures["balanced_accuracy"] > figures["chance"], "a constant label"
    shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if "." not in key)
    print(f"{stage.name}: {shown}", flush=True)
    if params.require_above_chance and not better:
        raise Problem(
            f"{stage.name}: on {len(held_out)} held-out rows no better than {blind} ({shown}); the model is not "
            "written. Try classify.method full, classify.trainer.learning_rate and num_train_epochs; "
            "classify.require_above_chance: false writes it all the same"
        )

    # 6. An ordinary model of transformers again.
    count = trainable(trainer.model)
    trained = merged(params.method, trainer.model, params.model)
    if is_regression:
        trained.config.target_mean, trained.config.target_std = mean, std
    save_model(trained, tokenizer, Path("models/classify") / name)
    curves(Path("reports/plots/classify") / name, steps, "step", {"Loss": ["loss", "validation_loss"]})
    stage.report(
        {
            **figures,
            "rows": len(tokens["train"]),
            "rows_too_long": sum(len(splits[split]) - len(tokens[split]) for split in splits),
            "validation_rows": len(tokens["validation"]),
            "method": params.method,
            "trainable_parameters": count,
            "steps": trainer.state.global_step,
            "validation_loss_before": next(row["validation_loss"] for row in steps if "validation_loss" in row),
            "validation_loss": [row["validation_loss"] for row in steps if "validation_loss" in row][-1],
        }
    )
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def tokenised(tokenizer: Any, rows: Sequence[Labelled], limit: int | None) -> list[tuple[Labelled, list[int]]]:
    """Rows with the ids of their text. Those that are too long are dropped, never cut; a Problem when all are."""
    found = [
        (row, ids)
        for row, ids in zip(rows, token_ids(tokenizer, [row.text for row in rows]), strict=True)
        if limit is None or len(ids) <= limit
    ]
    if not found:
        raise Problem(
            f"{rows[0].where}: this and all other rows are longer than {limit} tokens; set classify.max_length"
        )
    return found


if __name__ == "__main__":
    main(__file__, Params, run)
