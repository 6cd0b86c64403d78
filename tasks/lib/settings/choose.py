"""The section `choose` of params.yaml: the rule by which one model becomes the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, NonNegativeFloat, model_validator


class Params(BaseModel, extra="forbid"):
    candidates: list[str] = Field(min_length=1)
    """Names of models that `evaluate` compares, those of `evaluate.others` too; the first of equally good ones wins."""
    stay: str
    """Name of the model that becomes the policy when no candidate is better."""
    judge: Literal["win_rate", "reward_win_rate"]
    """The figure that decides."""
    select_on: str
    """The split whose figures decide."""
    report_on: list[str]
    """Splits whose figures describe the chosen model."""
    max_content_loss: float = Field(ge=0, le=1)
    """Fall of the exact match beyond which a candidate is refused."""
    max_kl: NonNegativeFloat
    """KL from the reference, in nats per answer, beyond which a candidate is refused."""

    @model_validator(mode="after")
    def selection_and_results_are_on_different_rows(self) -> Params:
        if self.select_on in self.report_on:
            split = self.select_on
            raise ValueError(
                f"report_on: {split} is the split that selects; a result on it would flatter the chosen model"
            )
        return self
