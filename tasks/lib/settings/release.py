"""The section `release` of params.yaml: what may be released, and what its card says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class Bounds(BaseModel, extra="forbid"):
    """What a format may differ from the fp32 model."""

    max_logit_error: float = Field(ge=0)
    """Largest difference of a logit."""
    kl: float = Field(ge=0)
    """Mean KL from the fp32 model, in nats per token."""
    agreement: float = Field(ge=0, le=1)
    """Fraction of positions with the same most likely token, at least."""
    exact_match_drop: float = Field(ge=0, le=1)
    """Fall of the exact match on the held-out rows; of the score where a task has another measure."""

    def broken_by(self, figures: dict[str, float]) -> list[str]:
        """`figure value (bound ...)` for every bound that does not hold; NaN holds none."""
        broken = []
        for name, bound in self.model_dump().items():
            if name == "exact_match_drop" and "score_drop" in figures:
                name = "score_drop"
            value = figures[name]
            holds = value >= bound if name == "agreement" else value <= bound
            if not holds:
                broken.append(f"{name} {value:.4g} (bound {bound:g})")
        return broken


class Card(BaseModel, extra="forbid"):
    """What only people know about the model."""

    name: str = Field(min_length=1)
    """The card's title."""
    license: str = Field(min_length=1)
    """The model's own licence: an identifier of the Hub, in lower case."""
    language: str
    """Two-letter code of the language."""
    base: str = Field(min_length=1)
    """A sentence: where the base model comes from, with its licence."""
    use: str = Field(min_length=1)
    """A sentence: what the model is for."""
    limits: list[str] = Field(min_length=1)
    """A sentence each: what it cannot do, what it must not be used for."""


class Params(BaseModel, extra="forbid"):
    model: Path
    """Folder of the full-precision model that the formats are compared with: the one `quantize` read."""
    judge: Literal["gold", "none"]
    """Whether a panel's true utility judges the answers; without it the card has exact match alone."""
    panel: Path
    """The file of the panel. It is not read with `judge: none`."""
    rows_per_split: int = Field(gt=0)
    """Held-out rows of one split on which formats are compared, at most."""
    max_new_tokens: int = Field(gt=0)
    """Tokens of an answer, at most."""
    batch_size: int = Field(gt=0)
    """Rows at a time; lower it when memory runs out."""
    bounds: dict[str, Bounds]
    """A format and its bounds."""
    licenses: list[str] = Field(min_length=1)
    """Licences of training rows that allow a release, as the sources spell them."""
    card: Card
