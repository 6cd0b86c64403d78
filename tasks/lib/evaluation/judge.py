"""The panel of annotators, and its true utility: the gold judge of the tiny world.

data/raw/panel.yaml says what the panel likes. The simulated annotators see that utility through their own
weights and noise; evaluation judges by the utility itself, which no model ever trains on.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeFloat, StringConstraints, ValidationError

from tasks.lib.stage import Problem, read_yaml

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Weights(BaseModel, extra="forbid"):
    """What a right content and a present closing are worth."""

    content: FiniteFloat
    closing: FiniteFloat

    def utility(self, content_is_right: bool, has_closing: bool) -> float:
        """`content * [the content is right] + closing * [the closing is there]`."""
        return self.content * content_is_right + self.closing * has_closing


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

    def utility(self, label: str, answer: str) -> float:
        """The true utility of an answer: the gold judge."""
        return self.utility_weights.utility(self.is_right(label, answer), self.has_closing(answer))

    def utility_to(self, annotator: Annotator, label: str, answer: str) -> float:
        """What the annotator would say without noise."""
        return annotator.utility(self.is_right(label, answer), self.has_closing(answer))


def read_panel(path: Path) -> Panel:
    """Read and check a panel file. Raises Problem naming file and key."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise Problem(f"{path}: expected the keys {_known(Panel)}, found {type(document).__name__}")
    try:
        panel = Panel(**document)
    except ValidationError as error:
        raise Problem(f"{path}: {_explained(error)}") from None
    names = [annotator.name for annotator in panel.annotators]
    for name in names:
        if names.count(name) > 1:
            raise Problem(f"{path}: annotators: {name} is there twice; give every annotator its own name")
    return panel


def _explained(error: ValidationError) -> str:
    # A misspelt key is also a missing one: say first what is there and should not be.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    key, last = ".".join(map(str, first["loc"])), str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"annotators": Annotator, "utility": Weights}
        known = _known(models.get(key.split(".")[0], Panel) if "." in key else Panel)
        near = difflib.get_close_matches(last, known.split(", "), n=1, cutoff=0.4)
        return f"{key} is not a key; " + (f"did you mean {near[0]}?" if near else f"known keys: {known}")
    if first["type"] == "missing":
        return f"{key} is missing"
    return f"{key}: {first['msg'].lower()}, found {str(first['input'])[:80]!r}"


def _known(model: type[BaseModel]) -> str:
    return ", ".join(sorted(info.alias or name for name, info in model.model_fields.items()))
