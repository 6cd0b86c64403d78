"""distill: a smaller model learns the policy's answers to unlabelled prompts.

Reads   distill.teacher, data/curated/{policy,evaluation}.parquet, the panel file of distill.panel
Writes  models/student, reports/distill.json, reports/plots/distill.csv, reports/plots/distill.png
Run     python -m tasks.distill
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tasks.lib.data.rows import read_parquet
from tasks.lib.evaluation.measures import content_metric
from tasks.lib.evaluation.panel import Panel, read_panel
from tasks.lib.evaluation.scores import answer_figures
from tasks.lib.export.distillation import TENSORS, Ids, Targets, chosen_layers, divergence, student_of, teacher_targets
from tasks.lib.export.manifest import hash_of
from tasks.lib.export.student_training import train_student
from tasks.lib.models.chat import Messages, all_prompt_ids, answer_text, load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import autocast, kept_dtype
from tasks.lib.plots import curves
from tasks.lib.settings.distill import Params
from tasks.lib.stage import Problem, Stage, main
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.read_back import ROWS, check_read_back, mean_loss

OUT = Path("models/student")
PROMPTS, EVALUATION = Path("data/curated/policy.parquet"), Path("data/curated/evaluation.parquet")
BATCH = 128  # rows answered or scored side by side


def run(params: Params, stage: Stage) -> None:
    # 1. Prompts without their labels, and a student made of the teacher's layers.
    tokenizer, teacher = load_tokenizer(params.teacher), load_policy(params.teacher)
    panel = read_panel(params.panel) if params.judge == "gold" else None
    prompts = _prompts(params, tokenizer)
    heldout = _heldout_rows(params)
    student = student_of(teacher, chosen_layers(params.layers, teacher.config.num_hidden_layers))

    # 2. The teacher answers once; a killed run finds the answers in a checkpoint, whose only step is 0.
    inputs = [params.teacher, PROMPTS]
    fingerprint = {
        "distill": params.model_dump(mode="json"),
        "seed": stage.seed,
        "inputs": {str(path): hash_of(path) for path in inputs},
    }
    generation = {
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.pad_token_id or 0,
        "max_new_tokens": params.max_new_tokens,
    }
    teacher_checkpoint = Checkpoint(stage.checkpoints / "teacher", fingerprint)
    saved = teacher_checkpoint.load(needs=TENSORS)
    if saved:
        _, tensors, _ = saved
        targets = Targets.of(tensors)
    else:
        settings: dict[str, Any] = {
            "top_k": params.top_k,
            "temperature": params.training.temperature,
            "batch_size": BATCH,
        }
        targets = teacher_targets(teacher, prompts, **settings, **generation)
        teacher_checkpoint.save(0, targets.tensors(), None)

    # 3. The student learns them.
    checkpoint = Checkpoint(stage.checkpoints / "student", fingerprint)
    kept = kept_dtype(params.teacher)
    with autocast(student, kept):
        log = train_student(student, teacher, prompts, targets, params.training, stage, checkpoint, **generation)

    # 4. Save the student; both answer held-out rows.
    rows = [prompt + answer for prompt, answer in zip(prompts[:ROWS], targets.answers, strict=False)]
    trained = mean_loss(student, rows)
    save_model(student, tokenizer, OUT, dtype=kept)
    check_read_back(OUT, trained, lambda: mean_loss(load_policy(OUT), rows))
    stage.report(_compared(teacher, student, tokenizer, heldout, panel, generation))
    curves(Path("reports/plots/distill"), log, "step", {"Loss": ["loss"], "Learning rate": ["learning_rate"]})
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def _prompts(params: Params, tokenizer: Any) -> list[Ids]:
    """At most `max_prompts` prompts as ids, each once, chosen by the hash that is their id."""
    messages_of: dict[str, Messages] = {}
    for row in read_parquet(PROMPTS, ["id", "messages"]):
        messages_of[row["id"]] = row["messages"]
    chosen = sorted(messages_of)[: params.max_prompts]
    if not chosen:
        raise Problem(f"{PROMPTS}: no prompts to distil from; raise the share of the split policy")
    return all_prompt_ids(tokenizer, [messages_of[key] for key in chosen])


def _heldout_rows(params: Params) -> list[dict[str, Any]]:
    """At most `evaluation_rows` rows of the split `rows`, chosen by the hash that is their id."""
    rows = [row for row in read_parquet(EVALUATION) if row["split"] == "rows"]
    if not rows:
        raise Problem(f"{EVALUATION}: no row of the split rows; the student could not be compared")
    return sorted(rows, key=lambda row: row["id"])[: params.evaluation_rows]


def _compared(
    teacher: Any,
    student: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    panel: Panel | None,
    generation: dict[str, int],
) -> dict[str, float]:
    """Teacher and student on held-out rows: right answers, with a panel `closing` and `gold`, size, and how alike they
    are: `agreement` of whole answers, and `kl`, KL(teacher || student) in nats per token of the teacher's answers."""
    prompts = all_prompt_ids(tokenizer, [row["messages"] for row in rows])
    figures: dict[str, float] = {"rows": len(rows)}
    answers: dict[str, list[Ids]] = {}  # of the teacher and of the student, in the order of the rows
    for name, model in (("teacher", teacher), ("student", student)):
        answers[name] = generate(model, prompts, temperature=0.0, seed=0, batch_size=BATCH, **generation)
        texts = [answer_text(tokenizer, answer) for answer in answers[name]]
        for key, value in answer_figures(rows, texts, panel).items():
            figures[f"{name}.{key}"] = value
        figures[f"{name}.parameters"] = model.num_parameters()
    figures["parameters_ratio"] = figures["student.parameters"] / figures["teacher.parameters"]
    metric = content_metric(figures, "student.")
    figures[f"{metric}_ratio"] = figures[f"student.{metric}"] / max(figures[f"teacher.{metric}"], 1e-9)
    equal_answers = sum(a == b for a, b in zip(answers["teacher"], answers["student"], strict=True))
    figures["agreement"] = equal_answers / len(rows)
    figures["kl"] = divergence(teacher, student, prompts, answers["teacher"], BATCH)
    return figures


if __name__ == "__main__":
    main(__file__, Params, run)
