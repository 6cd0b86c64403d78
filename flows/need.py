"""What one stage needs: memory of the device, operations, bytes on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """Of one stage: bytes on the device by what they are for, operations (None: not known yet), bytes on disk."""

    weights: float
    training: float  # gradients and optimiser
    activations: float
    cache: float  # keys and values of answers that are being sampled
    operations: float | None
    disk: float  # what stays
    scratch: float = 0.0  # on disk while the stage runs: checkpoints
    host: float = 0.0  # of the machine's memory, where a stage works on the CPU beside a GPU

    @property
    def memory(self) -> float:
        # generation and training take turns: the larger of the two counts
        return self.weights + self.training + max(self.activations, self.cache)
