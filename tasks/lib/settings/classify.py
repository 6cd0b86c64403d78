"""The section `classify` of params.yaml: classifiers and regressions, one per entry of `tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from tasks.lib.settings.methods import HeadMethod


class Task(BaseModel, extra="forbid"):
    """What one classifier learns. The key `objective` may be left out: no section of params.yaml shows it."""

    rows: Path
    """A folder of curated rows, of which those of this task are taken, or a table of texts and labels."""
    objective: Literal["classification", "regression"] = "classification"
    """Whether the labels are classes or numbers."""


class Params(BaseModel, extra="forbid"):
    tasks: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Task]
    """The name of each task, which names its folder and its report, and its rows."""
    model: Path
    """Folder of the model that gets a head: a decoder or an encoder."""
    method: HeadMethod
    """Which weights are trained."""
    lora: Annotated[dict[str, Any], "peft.tuners.lora.config.LoraConfig"]
    """Fields of peft's configuration; empty unless `method` is lora."""
    max_length: int | None = Field(ge=1)
    """Tokens of a text, beyond which its row is dropped; null allows what the model can read."""
    require_above_chance: bool
    """Whether a model that is no better than a constant answer stops the stage."""
    trainer: Annotated[dict[str, Any], "transformers.TrainingArguments"]
    """Fields of the trainer's configuration; what is left out has the default of transformers."""

    @model_validator(mode="after")
    def lora_has_its_method(self) -> Params:
        if self.lora and self.method != "lora":
            raise ValueError(f"lora is set, but classify.method is {self.method}; set it to lora")
        return self
