"""The section `choose` of params.yaml: the rule by which one model becomes the policy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, NonNegativeFloat


class Params(BaseModel, extra="forbid"):
    candidates: dict[str, str] = Field(min_length=1)
    stay: str
    stay_folder: str
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
