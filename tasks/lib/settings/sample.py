"""The section `sample` of params.yaml: several answers to each prompt, for annotation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, PositiveFloat

Kind = Literal["buckets", "ranker", "pairwise", "argilla"]
"""Kinds of annotation tasks; tasks/lib/annotation/tool_tasks.py explains each."""


class Params(BaseModel, extra="forbid"):
    prompts: int = Field(ge=1)
    """Prompts to be annotated: what the annotators have time for."""
    choice: Literal["random", "disagreement"]
    """Whether chance chooses the prompts, or the uncertainty of an earlier reward model."""
    reward: Path
    """Folder of that reward model. It is not read with `choice: random`."""
    pool: int = Field(ge=1)
    """With `choice: disagreement`, how many times `prompts` are answered, to choose from."""
    answers: int = Field(ge=2, le=9)
    """Answers of a prompt that annotators rank; more give more pairs and tire people."""
    oversample: int = Field(ge=1)
    """Draws for each answer that is kept; raise it where answers often repeat."""
    max_new_tokens: int = Field(ge=1)
    """Tokens of an answer, at most."""
    temperatures: list[PositiveFloat] = Field(min_length=1)
    """Sampling temperatures that a prompt's draws use in turn."""
    top_p: float = Field(gt=0, le=1)
    """Probability mass of the tokens that may be drawn."""
    batch_size: int = Field(ge=1)
    """Answers generated at a time; lower it when memory runs out."""
    tasks: list[Kind]
    """Which files for annotation tools are written."""
