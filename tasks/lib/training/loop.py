"""The training loop of base, reward and distill: plain steps on batches that are known beforehand.

A stage gives what differs: the gradients of a step, its learning rate, the optimiser. What they share is here: the
gradient is clipped, nothing that is not finite reaches the weights, the state is saved every few steps and when the run
is asked to end, and a run that goes on from there ends in the bytes of an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from tasks.lib.training.stopping import asked_to_stop

Figures = dict[str, float]  # of one step
WEIGHTS = "model."  # before the names of the weights in a checkpoint


def train_steps(
    stage: str,
    model: Any,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[int], tuple[Tensor, Figures]],
    *,
    steps: int,
    rate_at: Callable[[int], float],
    max_grad_norm: float,
    checkpoint: Checkpoint,
    save_every: int,
    progress: Callable[..., None],
    advice: Callable[[int], str],
) -> list[Figures]:
    """Train `model` in place, from the checkpoint if there is one. Returns {step, loss, ...} of every step.

    `backward(step)` adds the gradients of the loss of step 0 to steps - 1 to those of the weights, in one pass or
    several, and gives the loss and further figures for the log. Whatever it draws has to depend on the step alone.
    `rate_at(step)` is the learning rate. SIGTERM and Ctrl-C save after the step that is under way, then end the run
    with status 128 + the signal's number. Problem, which ends with `advice(step)`, when the loss or its gradient is not
    finite: the weights are then those before the step.
    """
    first, log = _resumed(model, optimizer, checkpoint)
    if first:
        print(f"{stage}: continuing after step {first} of {steps}", flush=True)
    with asked_to_stop(signal.SIGTERM, signal.SIGINT) as signals:
        for step in range(first, steps):
            optimizer.zero_grad()
            loss, figures = backward(step)
            _refuse_unless_finite(stage, step, "loss", loss, advice)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            _refuse_unless_finite(stage, step, "gradient's norm", norm, advice)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step)
            optimizer.step()

            done = step + 1
            log.append({"step": done, "loss": loss.item(), **figures})
            progress(done, steps, loss=loss.item(), **figures)
            # after the last step the caller saves the model, and then clears the checkpoint
            if signals or (done % save_every == 0 and done < steps):
                weights = {WEIGHTS + name: weight for name, weight in _trained(model).items()}
                checkpoint.save(done, weights | optimizer_tensors(optimizer), log)
            if signals:
                print(f"{stage}: stopped after step {done}; run it again to continue", flush=True)
                raise SystemExit(128 + signals[0])
    return log


def warmup_then_cosine(step: int, steps: int, warmup: int, *, floor: float = 0.1, falls_at_once: bool = False) -> float:
    """Factor of the learning rate at step 0 to steps - 1: a line up to 1 in `warmup` steps, then a cosine to `floor`.

    Step `warmup + i` is at i / n of the cosine, n = steps - warmup, so that i = 0 has factor 1 as the last of the
    warm-up has; with `falls_at_once` at (i + 1) / (n + 1). The step after the last would have `floor`.
    """
    if step < warmup:
        return (step + 1) / warmup
    done, length = step - warmup + falls_at_once, steps - warmup + falls_at_once
    return floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done / max(1, length)))


def _resumed(model: Any, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> tuple[int, list[Figures]]:
    """How many steps are done, and their log, once weights and optimiser are those of the checkpoint.

    One of other weights, which other versions of this code wrote, is discarded.
    """
    saved = checkpoint.load()
    if saved is None:
        return 0, []
    done, tensors, log = saved
    trained = {WEIGHTS + name: weight for name, weight in _trained(model).items()}
    saved_shapes = {name: tensor.shape for name, tensor in tensors.items() if name.startswith(WEIGHTS)}
    if saved_shapes != {name: weight.shape for name, weight in trained.items()}:
        checkpoint.discard("it holds other weights than are trained")
        return 0, []
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(tensors[name])
    restore_optimizer(optimizer, tensors)
    return done, log


def _trained(model: Any) -> dict[str, Tensor]:
    """The weights that a step changes; the others are those that the run began with."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _refuse_unless_finite(stage: str, step: int, what: str, value: Tensor, advice: Callable[[int], str]) -> None:
    if not torch.isfinite(value):
        raise Problem(f"{stage}: the {what} of step {step + 1} is {value.item()}, no step was taken; {advice(step)}")
