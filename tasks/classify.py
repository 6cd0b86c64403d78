"""classify: a classification or regression head on a decoder or an encoder, one model per name in classify.tasks.

No name, no stage: the pipeline as it comes has none.

Reads   classify.model; the rows of the task: data/curated and its check, or a table of texts and labels
Writes  models/classify/<task>, reports/classify/<task>.json, reports/plots/classify/<task>.{csv,png}
Run     python -m tasks.classify mood
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from torch import Tensor

from tasks.lib.data.labels import Labelled, classes, majority, read_labelled
from tasks.lib.evaluation.classification import classification_figures, regression_figures
from tasks.lib.finetuning.adapters import count_trainable
from tasks.lib.finetuning.classifier import (
    collator_of_texts,
    load_classifier,
    predicted,
    prepare_classifier,
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


@dataclass(frozen=True)
class Scale:
    """A regression's targets are trained in standard deviations from the mean of the training rows."""

    mean: float
    std: float


@dataclass(frozen=True)
class TokenizedText:
    """A row with the ids of its text."""

    row: Labelled
    ids: list[int]


def run(params: Params, stage: Stage) -> None:
    learn(params, stage, sys.argv[1:])


def learn(params: Params, stage: Stage, arguments: list[str]) -> None:
    from transformers import TrainingArguments

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
    scale = scale_of(splits["train"], name) if is_regression else None

    # 3. The model, frozen but for what the method trains.
    model, tokenizer, new = load_classifier(params.model, labels, params.method, stage.seed_of("head"))
    limit = length_limit(params.max_length, room(model))
    model = prepare_classifier(model, params.method, params.lora, new)
    texts = {split: tokenized_texts(tokenizer, rows, limit) for split, rows in splits.items()}

    # 4. Train. The loss is the mean over the rows of the effective batch.
    trainer = made_trainer(config, model, tokenizer, texts, labels, scale)
    log = train(trainer, stage, fingerprint_of(params, name, stage.seed), {"loss": "loss", "eval_loss": "validation"})
    steps = curve(log, {"loss": "loss", "eval_loss": "validation_loss"})

    # 5. Compare it on held-out rows with a guess that reads nothing.
    outputs = predicted(trainer.model, [text.ids for text in texts["test"]], batch_size=config.eval_batch_size)
    held_out = [text.row for text in texts["test"]]
    figures = held_out_figures(outputs, held_out, splits["train"], labels, scale, stage.seed_of("bootstrap"))
    shown = ", ".join(f"{key} {value:.3g}" for key, value in figures.items() if "." not in key)
    print(f"{stage.name}: {shown}", flush=True)
    if params.require_above_chance:
        refuse_at_chance(stage.name, figures, f"on {len(held_out)} held-out rows", shown)

    # 6. An ordinary model of transformers again.
    trainable_parameters = count_trainable(trainer.model)
    trained = trainer.model.merge_and_unload() if params.method == "lora" else trainer.model
    if scale is not None:
        trained.config.target_mean, trained.config.target_std = scale.mean, scale.std
    save_model(trained, tokenizer, Path("models/classify") / name)
    curves(Path("reports/plots/classify") / name, steps, "step", {"Loss": ["loss", "validation_loss"]})
    validation_losses = [row["validation_loss"] for row in steps if "validation_loss" in row]
    report: dict[str, Any] = {
        **figures,
        "rows": len(texts["train"]),
        "rows_too_long": sum(len(splits[split]) - len(texts[split]) for split in splits),
        "validation_rows": len(texts["validation"]),
        "method": params.method,
        "trainable_parameters": trainable_parameters,
        "steps": trainer.state.global_step,
        "validation_loss_before": validation_losses[0],
        "validation_loss": validation_losses[-1],
    }
    stage.report(report)
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def scale_of(rows: Sequence[Labelled], name: str) -> Scale:
    """Mean and (population) standard deviation of the rows' numbers. Problem when they are all equal."""
    numbers = [row.number for row in rows]
    scale = Scale(fmean(numbers), pstdev(numbers))
    if not scale.std:
        raise Problem(f"classify.tasks.{name}: every training row has the label {scale.mean:g}; nothing to learn")
    return scale


def length_limit(max_length: int | None, room: int | None) -> int | None:
    """The most tokens of a text, by params.yaml and by the model; None if neither limits them."""
    limits = [limit for limit in (max_length, room) if limit]
    return min(limits, default=None)


def tokenized_texts(tokenizer: Any, rows: Sequence[Labelled], limit: int | None) -> list[TokenizedText]:
    """The rows that are not too long; a Problem when all are. None is cut."""
    texts: list[TokenizedText] = []
    for row, ids in zip(rows, token_ids(tokenizer, [row.text for row in rows]), strict=True):
        if limit is None or len(ids) <= limit:
            texts.append(TokenizedText(row, ids))
    if not texts:
        raise Problem(
            f"{rows[0].where}: this and all other rows are longer than {limit} tokens; set classify.max_length"
        )
    return texts


def made_trainer(
    config: Any,
    model: Any,
    tokenizer: Any,
    texts: dict[str, list[TokenizedText]],
    labels: Sequence[str],
    scale: Scale | None,
) -> Any:
    """transformers' Trainer for the texts of the splits train and validation."""
    from transformers import Trainer

    return stage_trainer(Trainer)(
        model=model,
        args=config,
        data_collator=collator_of_texts(tokenizer.pad_token_id),
        compute_loss_func=summed_loss(config.label_smoothing_factor),
        train_dataset=examples(texts["train"], labels, scale),
        eval_dataset=examples(texts["validation"], labels, scale),
        lengths=[len(text.ids) for text in texts["train"]],
        ids=[text.row.where for text in texts["train"]],
    )


def examples(texts: Sequence[TokenizedText], labels: Sequence[str], scale: Scale | None) -> list[dict[str, Any]]:
    """Rows {row, input_ids, labels} for the trainer: the number of the label, or the scaled target."""
    rows: list[dict[str, Any]] = []
    for text in texts:
        if scale is None:
            target: float = labels.index(text.row.label)
        else:
            target = (text.row.number - scale.mean) / scale.std
        rows.append({"row": len(rows), "input_ids": text.ids, "labels": target})
    return rows


def fingerprint_of(params: Params, name: str, seed: int) -> dict[str, Any]:
    """What decides the weights of one task; the other tasks do not."""
    task = params.tasks[name]
    inputs = {str(params.model): weights_hash(params.model)}
    for file in sorted(task.rows.glob("*.parquet")) if task.rows.is_dir() else [task.rows]:
        inputs[str(file)] = file_hash(file)
    settings = params.model_dump(mode="json", exclude={"tasks"}) | {"task": task.model_dump(mode="json")}
    return {"params": settings, "seed": seed, "inputs": inputs}


def held_out_figures(
    outputs: Tensor,
    held_out: Sequence[Labelled],
    train_rows: Sequence[Labelled],
    labels: Sequence[str],
    scale: Scale | None,
    seed: int,
) -> dict[str, Any]:
    """Figures of the outputs (N, labels) for N held-out rows, and of a guess that knows the training rows alone."""
    if scale is not None:
        answers = (outputs[:, 0] * scale.std + scale.mean).tolist()
        numbers = [row.number for row in train_rows]
        return regression_figures([row.number for row in held_out], answers, numbers, seed=seed)
    named = [labels[number] for number in outputs.argmax(-1).tolist()]
    return classification_figures([row.label for row in held_out], named, majority(train_rows), seed=seed)


def refuse_at_chance(stage: str, figures: dict[str, Any], where: str, shown: str) -> None:
    """Problem when the model is no better than a guess that reads nothing."""
    if "mae" in figures:
        is_better, guess = figures["mae"] < figures["median_mae"], "the median of the training rows"
    else:
        is_better, guess = figures["balanced_accuracy"] > figures["chance"], "a constant label"
    if not is_better:
        raise Problem(
            f"{stage}: {where} no better than {guess} ({shown}); the model is not "
            "written. Try classify.method full, classify.trainer.learning_rate and num_train_epochs; "
            "classify.require_above_chance: false writes it anyway"
        )


if __name__ == "__main__":
    main(__file__, Params, run)
