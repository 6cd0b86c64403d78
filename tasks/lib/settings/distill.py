"""The section `distill` of params.yaml: a smaller model learns from the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Training(BaseModel, extra="forbid"):
    """How the student learns."""

    temperature: float = Field(gt=0)
    """Temperature of teacher and student in the loss; the gradient keeps its size."""
    alpha: Share
    """Weight of the teacher's distributions; 1 - alpha goes to the tokens that the teacher chose."""
    on_policy: Share
    """Fraction of the steps on the student's own answers, which the teacher corrects; each costs a generation."""
    epochs: int = Field(gt=0)
    """How often each prompt is trained on."""
    batch_size: int = Field(gt=0)
    """Prompts of one step."""
    learning_rate: float = Field(gt=0)
    """Its highest value; smaller for larger students."""
    warmup: Share
    """Fraction of the steps over which the learning rate rises."""
    weight_decay: float = Field(ge=0)
    """How strongly AdamW pulls matrices to 0."""
    max_grad_norm: float = Field(gt=0)
    """Length to which a longer gradient is cut."""
    checkpoint_every: int = Field(gt=0)
    """Steps that a killed run may have to repeat; does not change the result."""


class Params(BaseModel, extra="forbid"):
    teacher: Path
    """Folder of the model to learn from."""
    max_prompts: int = Field(gt=0)
    """Prompts that the teacher answers, at most."""
    evaluation_rows: int = Field(gt=0)
    """Held-out rows on which teacher and student are compared, at most."""
    judge: Literal["gold", "none"]
    """Whether a panel's true utility judges the answers of both; without it the report has exact match alone."""
    panel: Path
    """The file of the panel. It is not read with `judge: none`."""
    layers: Annotated[int, Field(gt=0)] | list[int]
    """Which of the teacher's layers the student starts with: every n-th, or those of a list."""
    max_new_tokens: int = Field(gt=0)
    """Tokens of an answer, at most."""
    top_k: int = Field(gt=0)
    """Probabilities of the teacher that are stored per token; more need more memory and disk."""
    training: Training
