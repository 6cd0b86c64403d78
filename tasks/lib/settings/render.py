"""The section `render` of params.yaml: labelled rows become instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator


class Shares(BaseModel, extra="forbid"):
    """Which share of the raw rows each use gets; together 1."""

    train: float = Field(ge=0)
    """For supervised fine-tuning."""
    preference: float = Field(ge=0)
    """Prompts whose answers are ranked."""
    policy: float = Field(ge=0)
    """Prompts for PPO and for distillation."""
    validation: float = Field(ge=0)
    """For choosing checkpoints and models."""
    test: float = Field(ge=0)
    """For the reported results."""


class Params(BaseModel, extra="forbid"):
    raw: Path
    """Folder of the tables."""
    sources: Path
    """Folder of the source.yaml files, one per table, anywhere below it; may be the same as `raw`."""
    templates: Path
    """Folder of the prompt templates, a folder per task."""
    heldout_clusters: list[str]
    """Kinds of tasks that are kept from training, to see what the model does with a kind it never saw."""
    heldout_templates: list[str]
    """Phrasings kept from training in addition to those that say so themselves, as <folder>/<name>."""
    shares: Shares
    templates_per_row: int | Literal["all"] = Field(union_mode="left_to_right")
    """How many phrasings each training row is asked in; more of them make the data larger, not richer in facts."""
    mixing: Literal["flan", "t0"]
    """How tasks of different size are balanced: a limit per task, or a limit that grows with its templates."""
    max_per_task: int = Field(ge=1)
    """Rows of one task in a training split, at most."""
    weights: dict[str, float]
    """A task's name and the factor by which its share of the training splits changes."""
    total: int | None = Field(ge=1)
    """Rows of the training split, divided over the tasks; null keeps all that the limits leave."""
    max_per_task_evaluation: int = Field(ge=1)
    """Rows of one task in each evaluation split; more make the intervals narrower and `evaluate` slower."""
    commercial: bool
    """Whether a source whose licence forbids commercial use stops the stage."""
    workers: int = Field(ge=1)
    """Processes; as many as there are cores for large tables."""
    show: int = Field(ge=0)
    """How many rendered rows are printed for a look."""

    @model_validator(mode="after")
    def shares_sum_to_one(self) -> Params:
        if abs(sum(self.shares.model_dump().values()) - 1) > 1e-9:
            raise ValueError("shares must sum to 1")
        return self
