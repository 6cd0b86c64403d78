"""The section `evaluate` of params.yaml: which models are compared, on how many rows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Params(BaseModel, extra="forbid"):
    models: dict[str, str] = Field(min_length=1)
    reference: str
    """The model that the win rates are against and the KL is from."""
    rows: list[str] = Field(min_length=1)
    limit_per_split: int = Field(ge=1)
    """Rows of one split, at most; more make the intervals narrower."""
    panel: str | None
    judge: Literal["gold", "panel"]
    reward: str | None
    max_new_tokens: int = Field(ge=1)
    """Tokens of an answer, at most."""
    kl_prompts: int = Field(ge=0)
    """Rows of one split on which the KL is estimated; 0 estimates none."""
    batch_size: int = Field(ge=1)
    """Rows at a time; lower it when memory runs out."""
    bootstrap_draws: int = Field(ge=100)
    """Resamples behind an interval; a thousand are steady to two digits."""
