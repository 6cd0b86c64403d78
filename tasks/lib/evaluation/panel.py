"""The panel of annotators, and its true utility: the gold judge of the tiny world.

data/raw/panel.yaml has what the panel likes. The simulated annotators perceive that utility through their own
weights and noise; evaluation judges by the utility itself, which no model ever trains on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeFloat, StringConstraints, model_validator

from tasks.lib.evaluation.measures import score
from tasks.lib.stage import read_yaml, validated

Row = Mapping[str, Any]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Weights(BaseModel, extra="forbid"):
    """What a right content and a present closing are worth."""

    content: FiniteFloat
    closing: FiniteFloat

    def utility(self, right: float, has_closing: bool) -> float:
        """`content * [how right the content is, 0 to 1] + closing * [the closing is there]`."""
        return self.content * right + self.closing * has_closing


class Annotator(Weights):
    """One simulated annotator: own weights, and the standard deviation of the noise on its utility."""

    name: Name
    noise: NonNegativeFloat


class Panel(BaseModel, extra="forbid"):
    """The panel: the closing it likes, the true utility, its annotators, and when two answers tie."""

    closing: str = Field(pattern=r"\S")  # as it is appended to an answer, leading space included
    utility_weights: Weights = Field(alias="utility")
    annotators: list[Annotator] = Field(min_length=1)
    tie_below: NonNegativeFloat

    @model_validator(mode="after")
    def annotators_have_names_of_their_own(self) -> Panel:
        names = [annotator.name for annotator in self.annotators]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"annotators: {name} occurs twice; give every annotator its own name")
        return self

    def has_closing(self, answer: str) -> bool:
        """True if the answer ends with the closing (after white space, if the closing begins with some)."""
        lead = " " if self.closing[0].isspace() else ""
        return (lead + answer.strip()).endswith(lead + self.closing.strip())

    def content(self, answer: str) -> str:
        """The answer without one closing and without outer white space. A second closing is content."""
        text = answer.strip()
        return text.removesuffix(self.closing.strip()).strip() if self.has_closing(text) else text

    def is_right(self, label: str, answer: str) -> bool:
        """True if the content of the answer is the label's (case counts, outer white space does not)."""
        return self.content(answer) == self.content(label)

    def score(self, row: Row, answer: str) -> float:
        """How right the content of an answer to a row is, 0 to 1, by the measure of the row's task."""
        return score(row["measure"], self.content(row["label"]), self.content(answer), row["choices"])

    def utility(self, row: Row, answer: str) -> float:
        """The true utility of an answer to a row: the gold judge."""
        return self.utility_weights.utility(self.score(row, answer), self.has_closing(answer))

    def utility_to(self, annotator: Annotator, row: Row, answer: str) -> float:
        """What an answer to a row is worth to the annotator, without noise."""
        return annotator.utility(self.score(row, answer), self.has_closing(answer))


def read_panel(path: Path) -> Panel:
    """Read and check a panel file. Problem naming file and key."""
    return validated("", Panel, read_yaml(path), path)
