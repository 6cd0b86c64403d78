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
from tasks.lib.evaluation.judge import Panel, read_panel
from tasks.lib.evaluation.scores import exact_match
from tasks.lib.export.distillation import (
    Targets,
    chosen_layers,
    divergence,
    student_of,
    taught,
)
from tasks.lib.export.manifest import hash_of
from tasks.lib.export.student_training import train_student
from tasks.lib.models.chat import answer_text, load_tokenizer, prompt_ids
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.plots import curves
from tasks.lib.settings.distill import Params
from tasks.lib.stage import Problem, Stage, main
from tasks.lib.training.checkpoints import Checkpoint

PROMPTS, EVALUATION = Path("data/curated/policy.parquet"), Path("data/curated/evaluation.parquet")
GENERATED = 128  # rows answered or scored side by side


def run(params: Params, stage: Stage) -> None:
    # 1. Prompts without their labels, and a student made of the teacher's layers
    tokenizer, teacher = load_tokenizer(params.teacher), load_policy(params.teacher)
    panel = read_panel(params.panel) if params.judge == "panel" else None
    prompts = _prompts(params, tokenizer)
    heldout = sorted(read_parquet(EVALUATION), key=lambda row: row["id"])
    heldout = [row for row in heldout if row["split"] == "rows"][: params.evaluation_rows]
    if not heldout:
        raise Problem(f"{EVALUATION}: no row of the split rows; the student could not be compared")
    student = student_of(teacher, chosen_layers(params.layers, teacher.config.num_hidden_layers))

    # 2. The teacher answers once; a killed run does not ask it again
    inputs = [params.teacher, PROMPTS]
    fingerprint = {
        "distill": params.model_dump(mode="json"),
        "seed": stage.seed,
        "inputs": {str(path): hash_of(path) for path in inputs},
    }
    asked = Checkpoint(stage.checkpoints / "teacher", fingerprint)
    words = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id or 0}
    words |= {"max_new_tokens": params.max_new_tokens}
    if saved := asked.load():
        targets = Targets.of(saved[1])
    else:
        targets = taught(teacher, prompts, top_k=params.top_k, batch_size=GENERATED, **words)
        asked.save(0, targets.tensors(), None)

    # 3. The student learns them
    checkpoint = Checkpoint(stage.checkpoints / "student", fingerprint)
    log = train_student(student, teacher, prompts, targets, params.training, stage, checkpoint, **words)

    # 4. Both answer held-out rows
    save_model(student, tokenizer, Path("models/student"))
    stage.report(_compared(teacher, student, tokenizer, heldout, panel, words))
    curves(Path("reports/plots/distill"), log, "step", {"Loss": ["loss"], "Learning rate": ["learning_rate"]})
    shutil.rmtree(stage.checkpoints, ignore_errors=True)


def _prompts(params: Params, tokenizer: Any) -> list[list[int]]:
    rows = {row["id"]: row for row in read_parquet(PROMPTS, ["id", "messages"])}
    chosen = [rows[key] for key in sorted(rows)][: params.max_prompts]
    if not chosen:
        raise Problem(f"{PROMPTS}: no prompts to distil on; raise the share of the split policy")
    return [prompt_ids(tokenizer, row["messages"]) for row in chosen]


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
        ids[name] = generate(model, prompts, temperature=0.0, seed=0, batch_size=GENERATED, **words)
        told = [(row["label"], answer_text(tokenizer, answer)) for row, answer in zip(rows, ids[name], strict=True)]
        judged: dict[str, list[float]] = {"exact_match": [exact_match(answer, label, panel) for label, answer in told]}
        if panel:
            judged["closing"] = [panel.has_closing(answer) for _, answer in told]
            judged["gold"] = [panel.utility(label, answer) for label, answer in told]
        figures |= {f"{name}.{key}": sum(values) / len(rows) for key, values in judged.items()}
        figures[f"{name}.parameters"] = sum(p.numel() for p in model.parameters())
    figures["parameters_ratio"] = figures["student.parameters"] / figures["teacher.parameters"]
    figures["exact_match_ratio"] = figures["student.exact_match"] / max(figures["teacher.exact_match"], 1e-9)
    figures["agreement"] = sum(a == b for a, b in zip(ids["teacher"], ids["student"], strict=True)) / len(rows)
    figures["kl"] = divergence(teacher, student, prompts, ids["teacher"], GENERATED)
    return figures


if __name__ == "__main__":
    main(__file__, Params, run)
