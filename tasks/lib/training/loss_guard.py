"""What a Trainer's loss has to be before its step is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from tasks.lib.stage import Problem

Spike = Literal["warn", "stop", "off"]
SPIKE = 5.0  # times the median of the steps before
MEDIAN_OF, FEWEST = 50, 20  # logged losses before a step: how many the median is of, and how many there must be
NAMED_ROWS = 8  # in a message, at most


@dataclass(frozen=True)
class LossGuard:
    """Looks at the training loss of every batch."""

    ids: Sequence[str]  # of the training rows
    first_loss: float | None = None  # what the loss of the first step must be
    spike: Spike = "off"  # on a loss of SPIKE times the median before: name its rows, or stop as well, or ignore it

    def check(self, loss: float, rows: Sequence[int], step: int, log: Sequence[Mapping[str, Any]], parts: int) -> None:
        """Problem for a `loss` that is not finite, for another first one, and for a spike that is to stop the run.

        `rows` are those of the batch, one of `parts` batches whose losses add up to that of `step` (from 0).
        """
        named = ", ".join(self.ids[row] for row in rows[:NAMED_ROWS])
        more = " and more" if len(rows) > NAMED_ROWS else ""
        where = f"at step {step + 1}; rows {named}{more}"
        if not math.isfinite(loss):
            raise Problem(f"the loss is {loss} {where}; check them, or lower the learning rate")
        self._check_spike(loss * parts, where, log)
        if self.first_loss is not None and step == 0 and not math.isclose(loss, self.first_loss, abs_tol=1e-5):
            raise Problem(f"the first loss is {loss:.6g}, not {self.first_loss:.6g}: is the reference another model?")

    def _check_spike(self, loss: float, where: str, log: Sequence[Mapping[str, Any]]) -> None:
        if self.spike == "off":
            return
        times = times_the_median(loss, log)
        if times <= SPIKE:
            return
        found = f"the loss is {loss:.3g}, {times:.0f} times the median of the steps before, {where}"
        if self.spike == "stop":
            raise Problem(f"{found}; check them, or set sft.spike to warn")
        print(f"sft: {found}", flush=True)


def times_the_median(loss: float, log: Sequence[Mapping[str, Any]]) -> float:
    """How many times the median of the last logged losses `loss` is; 0 while there are few."""
    recent = log[-4 * MEDIAN_OF :]  # evaluations are logged in between
    losses = [entry["loss"] for entry in recent if "loss" in entry][-MEDIAN_OF:]
    if len(losses) < FEWEST:
        return 0.0
    return loss / max(median(losses), 1e-9)
