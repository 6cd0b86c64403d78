"""The loop that teaches a student: AdamW, cosine, checkpoints; a killed run ends in the same bytes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from tasks.lib.export.distillation import Ids, Targets, corrected_loss, taught_loss
from tasks.lib.models.batches import minibatches
from tasks.lib.models.generation import generate
from tasks.lib.settings.distill import Training
from tasks.lib.stage import Problem, Stage, asked_to_stop
from tasks.lib.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer

Log = list[dict[str, float]]


def train_student(
    student: Any,
    teacher: Any,
    prompts: Sequence[Ids],
    targets: Targets,
    how: Training,
    stage: Stage,
    checkpoint: Checkpoint,
    **words: int,
) -> Log:
    """Train `student` in place on all prompts; `words` are generate's eos_id, pad_id and max_new_tokens.

    Every draw is a function of the step, so a resumed run is the uninterrupted one. SIGTERM and Ctrl-C save
    after the step, then end the run. Raises Problem on a loss that is not finite.
    """
    lengths = [len(p) + len(a) for p, a in zip(prompts, targets.answers, strict=True)]
    batches = [
        batch
        for epoch in range(how.epochs)
        for batch in minibatches(lengths, how.batch_size, stage.seed_of("order", epoch))
    ]
    optimizer = _optimizer(student, how)
    first, log = 0, Log()
    if saved := checkpoint.load():
        first, tensors, log = saved
        student.load_state_dict({name: tensors[f"student.{name}"] for name in student.state_dict()})
        restore_optimizer(optimizer, tensors)
        print(f"{stage.name}: going on after step {first} of {len(batches)}", flush=True)

    student.train()
    with asked_to_stop() as signals:
        for step in range(first, len(batches)):
            # 1. The loss: on the teacher's answers, or on answers that the student writes now
            some = [prompts[row] for row in batches[step]]
            if random.Random(stage.seed_of("whose", step)).random() < how.on_policy:
                drawn = generate(student, some, temperature=1.0, batch_size=len(some),
                               seed=stage.seed_of("answers", step), **words)  # fmt: skip
                loss = corrected_loss(student, teacher, some, drawn, how.temperature)
            else:
                loss = taught_loss(student, prompts, targets, batches[step], how.alpha, how.temperature)
            if not torch.isfinite(loss):
                raise Problem(
                    f"{stage.name}: the loss of step {step + 1} is {loss.item()}, no step was taken; lower "
                    f"{stage.name}.training.learning_rate"
                )
            # 2. The step
            rate = how.learning_rate * _schedule(step, len(batches), how.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), how.max_grad_norm)
            optimizer.step()
            log.append({"step": step + 1, "loss": loss.item(), "learning_rate": rate})
            stage.progress(step + 1, len(batches), loss=loss.item())
            # 3. The checkpoint
            if signals or ((step + 1) % how.checkpoint_every == 0 and step + 1 < len(batches)):
                weights = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
                checkpoint.save(step + 1, weights | optimizer_tensors(optimizer), log)
            if signals:
                print(f"{stage.name}: stopped after step {step + 1}; run it again to go on", flush=True)
                raise SystemExit(128 + signals[0])
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


def _schedule(step: int, steps: int, warmup: float) -> float:
    """A factor for the learning rate of step 0 to steps - 1: linear warm-up, then cosine to a tenth."""
    rising = max(int(warmup * steps), 1)
    if step < rising:
        return (step + 1) / rising
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
