"""The section `evaluate` of params.yaml: which models are compared, on how many rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator

Trained = Literal["base", "sft", "dpo", "ppo"]
"""The models that the pipeline trains on its way to the policy, each in the folder of its name in models/."""


class Params(BaseModel, extra="forbid"):
    models: list[Trained] = Field(min_length=1)
    """Which of the trained models are compared; the table has their order, and the KL is of those after `reference`."""
    others: Path
    """Folder of further models: each subfolder that holds one is compared too, under its name."""
    few_shot: int = Field(ge=0)
    """Solved training examples in front of each prompt of a further model base_few_shot; 0: there is none."""
    reference: str
    """The model that the win rates are against and the KL is from."""
    limit_per_split: int = Field(ge=1)
    """Rows of one split, at most; more make the intervals narrower."""
    judge: Literal["gold", "panel", "none"]
    """Who decides a win: the panel's true utility, the votes of its annotators, or nobody."""
    panel: Path
    """The file of the panel. It is not read with `judge: none`."""
    reward: bool
    """Whether models/reward scores the answers too."""
    max_new_tokens: int = Field(ge=1)
    """Tokens of an answer, at most."""
    kl_prompts: int = Field(ge=0)
    """Rows of one split on which the KL is estimated; 0 estimates none."""
    batch_size: int = Field(ge=1)
    """Rows at a time; lower it when memory runs out."""
    bootstrap_draws: int = Field(ge=100)
    """Resamples behind an interval; a thousand are steady to two digits."""

    @model_validator(mode="after")
    def what_is_named_is_compared(self) -> Params:
        if self.reference not in self.models:
            raise ValueError(f"reference: {self.reference} is not one of evaluate.models")
        if self.few_shot and "base" not in self.models:
            raise ValueError("few_shot: base is not one of evaluate.models; add it, or set few_shot to 0")
        return self
