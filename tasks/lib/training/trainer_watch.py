"""What happens while a Trainer runs: progress, whole checkpoints, and an early end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tasks.lib.stage import Stage
from tasks.lib.training.checkpoints import mark_complete
from tasks.lib.training.distributed import combined, is_first, wait_for_all

Log = Sequence[Mapping[str, Any]]


class Watch(TrainerCallback):
    """Prints progress, marks checkpoints as complete, and ends the run when patience is over or on a signal.

    `shown` maps names of the log to names on the progress line. A signal in the list `signals` saves and ends the run
    after a step that is a multiple of `border`, in all processes.
    """

    def __init__(
        self,
        stage: Stage,
        fingerprint: dict[str, Any],
        shown: Mapping[str, str],
        signals: list[int],
        border: int,
        patience: int | None,
    ) -> None:
        self.stage, self.fingerprint, self.shown = stage, fingerprint, shown
        self.signals, self.border, self.patience = signals, border, patience
        self.latest: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        for name, value in (logs or {}).items():
            if name in self.shown:
                self.latest[self.shown[name]] = value
        if self.latest:
            self.stage.progress(state.global_step, state.max_steps, **self.latest)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.border:
            return
        if combined({"signals": len(self.signals)})["signals"]:  # whichever process was asked
            control.should_save = control.should_training_stop = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if patience_is_over(state.log_history, self.patience):
            print(f"{self.stage.name}: no gain in {self.patience} evaluations; it ends at step {state.global_step}")
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()
        if is_first():
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.fingerprint)


def patience_is_over(log: Log, patience: int | None) -> bool:
    """Whether `patience` evaluations followed the one with the least loss. From the log: a resumed run knows it too."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
