"""How a student is taught: which prompts a step has, who writes their answers, the optimiser."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.lib.export.distillation import Ids, Targets, off_policy_loss, on_policy_loss, passes_of
from tasks.lib.models.batches import lengths_of, shuffled_batches
from tasks.lib.models.generation import generate
from tasks.lib.settings.distill import Training
from tasks.lib.stage import Stage
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.loop import train_steps, warmup_then_cosine

Log = list[dict[str, float]]


def train_student(
    student: Any,
    teacher: Any,
    prompts: Sequence[Ids],
    targets: Targets,
    how: Training,
    stage: Stage,
    checkpoint: Checkpoint,
    **generation: int,
) -> Log:
    """Train `student` in place on all prompts; `generation` is generate's eos_id, pad_id and max_new_tokens.

    A step learns the teacher's answers, or (with probability `on_policy`) has the teacher correct answers that the
    student writes now. Resumed and stopped as `train_steps` says.
    """
    lengths = lengths_of(prompts, targets.answers)
    batches: list[list[int]] = []
    for epoch in range(how.epochs):
        batches += shuffled_batches(lengths, how.batch_size, stage.seed_of("order", epoch))
    steps, warmup = len(batches), max(int(how.warmup * len(batches)), 1)

    def rate_at(step: int) -> float:
        return how.learning_rate * warmup_then_cosine(step, steps, warmup)

    def backward(step: int) -> tuple[Tensor, dict[str, float]]:
        batch_prompts = [prompts[row] for row in batches[step]]
        is_on_policy = random.Random(stage.seed_of("whose", step)).random() < how.on_policy
        if is_on_policy:
            size, seed = len(batch_prompts), stage.seed_of("answers", step)
            answers = generate(student, batch_prompts, temperature=1.0, batch_size=size, seed=seed, **generation)
        else:
            answers = [targets.answers[row] for row in batches[step]]
        loss, tokens = torch.zeros((), device=student.device), sum(map(len, answers))
        for places in passes_of(student, batch_prompts, answers):
            if is_on_policy:
                part_prompts = [batch_prompts[place] for place in places]
                part_answers = [answers[place] for place in places]
                part = on_policy_loss(student, teacher, part_prompts, part_answers, how.temperature)
            else:
                rows = [batches[step][place] for place in places]
                part = off_policy_loss(student, prompts, targets, rows, how.alpha, how.temperature)
            part = part * (sum(len(answers[place]) for place in places) / tokens)  # means over tokens add up
            part.backward()
            loss = loss + part.detach()
        return loss, {"learning_rate": rate_at(step)}

    student.train()
    log = train_steps(
        stage.name,
        student,
        _optimizer(student, how),
        backward,
        steps=steps,
        rate_at=rate_at,
        max_grad_norm=how.max_grad_norm,
        checkpoint=checkpoint,
        save_every=how.checkpoint_every,
        progress=stage.progress,
        advice=lambda step: f"lower {stage.name}.training.learning_rate",
    )
    student.eval()
    return log


def _optimizer(student: Any, how: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices only: norms and biases have no reason to shrink."""
    matrices = [p for p in student.parameters() if p.ndim >= 2]
    others = [p for p in student.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": how.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=how.learning_rate, betas=(0.9, 0.95), eps=1e-8)
