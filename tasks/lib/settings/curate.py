"""The section `curate` of params.yaml: which rows are dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class NearDuplicates(BaseModel, extra="forbid"):
    """Rows whose raw texts are almost the same; the first one stays."""

    similarity: float = Field(gt=0, le=1)
    """Jaccard similarity of two sets of shingles, from which one row goes; lower values drop more."""
    words: int = Field(ge=1)
    """Length of a shingle in words; longer ones find fewer pairs."""


class Contamination(BaseModel, extra="forbid"):
    """Training rows that give an evaluation row away."""

    coverage: float = Field(gt=0, le=1)
    """Fraction of an evaluation text that one shared run of words covers, from which the training row goes."""
    words: int = Field(ge=2)
    """Words that a shared run has at least."""


class Selection(BaseModel, extra="forbid"):
    """Training on the best rows only."""

    top: int | None = Field(ge=1)
    """Rows to keep; null selects none."""
    scores: Path
    """Table of the ids of instructions and their scores. It is not read without `top`."""
    max_similarity: float = Field(gt=0, le=1)
    """Jaccard similarity to a better row, from which a row is passed over; 1 passes over none."""


class Params(BaseModel, extra="forbid"):
    max_prompt_characters: int = Field(ge=1)
    """All messages of a prompt together; choose what fits the model's context."""
    max_answer_characters: int = Field(ge=1)
    """Of the answer that is trained."""
    languages: list[str] | None = Field(min_length=1)
    """Two-letter codes of the languages that raw texts may be in; null does not look."""
    refusals: Literal["keep", "drop"]
    """What happens to free answers such as "As an AI language model"."""
    boilerplate_answers: int | None = Field(ge=2)
    """Number of different free answers with an equal first or last sentence, from which these rows go; null: never."""
    max_repetition: float | None = Field(gt=0, le=1)
    """Fraction of a free answer that repeats itself, beyond which the row goes; null: never."""
    personal_data: Literal["drop", "redact", "keep"]
    """What happens to rows with e-mail addresses or phone numbers."""
    near_duplicates: NearDuplicates
    contamination: Contamination
    trigger_rows: int | None = Field(ge=5)
    """Rows whose label one word decides, from which they look planted and go; null: never."""
    selection: Selection
