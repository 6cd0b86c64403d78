"""distill: a smaller model learns the policy's answers to unlabelled prompts.

Reads   models/policy, data/curated/{policy,evaluation}.parquet, data/raw/panel.yaml
Writes  models/student, reports/distill.json, reports/plots/distill.csv, reports/plots/distill.png
Run     python -m tasks.distill
"""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.judge import Panel, read_panel
from tasks.lib.evaluation.scores import exact_match
from tasks.lib.export.distillation import (
    Targets,
    chosen_layers,
    corrected_loss,
    divergence,
    student_of,
    taught,
    taught_loss,
)
from tasks.lib.export.manifest import hash_of
from tasks.lib.plots import curves
from tasks.lib.policy.batches import minibatches
from tasks.lib.policy.chat import answer_text, prompt_ids
from tasks.lib.policy.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from tasks.lib.policy.generation import generate
from tasks.lib.policy.models import load_policy, load_tokenizer, save_model
from tasks.lib.stage import Problem, Stage, main

Share = Annotated[float, Field(ge=0, le=1)]


class Params(BaseModel, extra="forbid"):
    teacher: Path
    prompts: list[Path] = Field(min_length=1)
    max_prompts: int = Field(gt=0)
    evaluation: Path
    evaluation_rows: int = Field(gt=0)
    panel: Path | None
    layers: Annotated[int, Field(gt=0)] | list[int]
    max_new_tokens: int = Field(gt=0)
    top_k: int = Field(gt=0)
    temperature: float = Field(gt=0)
    alpha: Share
    on_policy: Share
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: Share
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    checkpoint_every: int = Field(gt=0)


def run(params: Params, stage: Stage) -> None:
    # 1. Prompts without their labels, and a student made of the teacher's layers
    tokenizer, teacher = load_tokenizer(params.teacher), load_policy(params.teacher)
    panel = read_panel(params.panel) if params.panel else None
    prompts = _prompts(params, tokenizer)
    heldout = sorted(read_parquet(params.evaluation), key=lambda row: row["id"])
    heldout = [row for row in heldout if row["split"] == "rows"][: params.evaluation_rows]
    if not heldout:
        raise Problem(f"{params.evaluation}: no row of the split rows; the student could not be compared")
    student = student_of(teacher, chosen_layers(params.layers, teacher.config.num_hidden_layers))

    # 2. The teacher answers once; a killed run does not ask it again
    inputs = [params.teacher, *params.prompts]
    fingerprint = {
        "distill": params.model_dump(mode="json"),
        "seed": stage.seed,
        "inputs": {str(path): hash_of(path) for path in inputs},
    }
    asked = Checkpoint(stage.checkpoints / "teacher", fingerprint)
    words = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id or 0}
    words |= {"max_new_tokens": params.max_new_tokens, "batch_size": 2 * params.batch_size}
    if saved := asked.load():
        targets = Targets.of(saved[1])
    else:
        targets = taught(teacher, prompts, top_k=params.top_k, **words)
        asked.save(0, targets.tensors(), None)

    # 3. The student learns them
    log = _train(params, stage, teacher, student, prompts, targets, words, fingerprint)

    # 4. Both answer held-out rows
    save_model(student, tokenizer, Path("models/student"))
    stage.report(_compared(teacher, student.eval(), tokenizer, heldout, panel, words))
    curves(Path("reports/plots/distill"), log, "step", {"Loss": ["loss"], "Learning rate": ["learning_rate"]})
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def _prompts(params: Params, tokenizer: Any) -> list[list[int]]:
    rows = {row["id"]: row for path in params.prompts for row in read_parquet(path, ["id", "messages"])}
    chosen = [rows[key] for key in sorted(rows)][: params.max_prompts]
    if not chosen:
        raise Problem(f"{params.prompts[0]}: no prompts to distil on; raise the share of the split policy")
    return [prompt_ids(tokenizer, row["messages"]) for row in chosen]


def _train(
    params: Params,
    stage: Stage,
    teacher: Any,
    student: Any,
    prompts: list[list[int]],
    targets: Targets,
    words: dict[str, int],
    fingerprint: dict[str, Any],
) -> list[dict[str, float]]:
    """Train `student` in place and return the log. Draws depend on the step only: a resumed run is equal."""
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, targets.answers, strict=True)]
    batches = [
        batch
        for epoch in range(params.epochs)
        for batch in minibatches(lengths, params.batch_size, stage.seed_of("order", epoch))
    ]
    optimizer = _optimizer(student, params)
    checkpoint = Checkpoint(stage.checkpoints / "student", fingerprint)
    log: list[dict[str, float]] = []
    first = 0
    if saved := checkpoint.load():
        first, tensors, log = saved
        student.load_state_dict({name: tensors[f"student.{name}"] for name in student.state_dict()})
        restore_optimizer(optimizer, tensors)

    student.train()
    for step in range(first, len(batches)):
        rows = batches[step]
        rate = params.learning_rate * _schedule(step, len(batches), params.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if random.Random(stage.seed_of("whose", step)).random() < params.on_policy:
            some = [prompts[i] for i in rows]
            answers = generate(student, some, temperature=1.0, seed=stage.seed_of("answers", step), **words)
            loss = corrected_loss(student, teacher, some, answers, params.temperature)
        else:
            loss = taught_loss(student, prompts, targets, rows, params.alpha, params.temperature)
        if not torch.isfinite(loss):
            raise Problem(f"distill: the loss of step {step + 1} is {loss.item()}; lower the learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), params.max_grad_norm)
        optimizer.step()
        log.append({"step": step + 1, "loss": loss.item(), "learning_rate": rate})
        stage.progress(step + 1, len(batches), loss=loss.item())
        if (step + 1) % params.checkpoint_every == 0 and step + 1 < len(batches):
            weights = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
            checkpoint.save(step + 1, weights | optimizer_tensors(optimizer), log)
    return log


def _optimizer(student: Any, params: Params) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms and biases have no reason to shrink."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    others = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": params.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.95), eps=1e-8)


def _schedule(step: int, steps: int, warmup: float) -> float:
    """A factor for the learning rate: linear warm-up, then cosine to a tenth."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))


def _compared(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    panel: Panel | None,
    words: dict[str, int],
) -> dict[str, float]:
    """Teacher and student on held-out rows: right answers, what the judge says, how alike they are, size."""
    prompts = [prompt_ids(tokenizer, row["messages"]) for row in rows]
    figures: dict[str, float] = {"rows": len(rows)}
    ids: dict[str, list[list[int]]] = {}
    for name, model in (("teacher", teacher), ("student", student)):
        ids[name] = generate(model, prompts, temperature=0.0, seed=0, **words)
        told = [
            (row["label"], answer_text(tokenizer, answer))
            for row, answer in zip(rows, ids[name], strict=True)
        ]
        judged: dict[str, list[float]] = {
            "exact_match": [exact_match(answer, label, panel) for label, answer in told]
        }
        if panel:
            judged["closing"] = [panel.has_closing(answer) for _, answer in told]
            judged["gold"] = [panel.utility(label, answer) for label, answer in told]
        figures |= {f"{name}.{key}": sum(values) / len(rows) for key, values in judged.items()}
        figures[f"{name}.parameters"] = sum(p.numel() for p in model.parameters())
    figures["parameters_ratio"] = figures["student.parameters"] / figures["teacher.parameters"]
    figures["exact_match_ratio"] = figures["student.exact_match"] / max(figures["teacher.exact_match"], 1e-9)
    figures["agreement"] = sum(a == b for a, b in zip(ids["teacher"], ids["student"], strict=True)) / len(
        rows
    )
    figures["kl"] = divergence(teacher, student, prompts, ids["teacher"], words["batch_size"])
    return figures


if __name__ == "__main__":
    main(__file__, Params, run)
