"""The section `sft` of params.yaml: supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from tasks.lib.settings.methods import Method


class Params(BaseModel, extra="forbid"):
    launcher: str
    """The program that starts the stage's processes; docs/distributed.md has complete ones."""
    optimizer: Literal["muon", "trainer"]
    """Muon learns faster on small models and needs whole matrices; `trainer` leaves the choice to `trainer.optim`."""
    tasks: list[str]
    """Tasks whose rows are trained on; all of them when empty."""
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] | None
    """Tokens of one step, in place of a number of rows; `auto` decides by the rows' lengths, null counts rows."""
    attention: str | None
    """Name of an attention implementation of transformers; null leaves the choice to transformers."""
    packing: bool
    """Whether short rows share a sequence, which saves padding and changes no row's attention."""
    keep: Literal["last", "best"]
    """Which weights become the model: those of the last step, or of the lowest validation loss."""
    patience: int | None = Field(ge=1)
    """Evaluations without a lower validation loss after which training stops; null never stops early."""
    spike: Literal["warn", "stop", "off"]
    """On a sudden rise of the loss: name the rows and go on, name them and stop, or ignore it."""
    known_facts: int = Field(ge=0)
    """Training rows that the base model is asked before training, for the report; 0 asks none."""
    preview_rows: int = Field(ge=0)
    """Rows that are printed with the trained tokens marked."""
    method: Method
    """Which weights are trained."""
    adapter: dict[str, Any]
    """The method's settings: fields of its peft configuration, `size` of bottleneck, `tokens` of prompt."""
    trainer: Annotated[dict[str, Any], "trl.trainer.sft_config.SFTConfig"]
    """Fields of TRL's configuration; what is left out has TRL's default."""

    @model_validator(mode="after")
    def settings_fit_each_other(self) -> Params:
        if self.optimizer == "muon" and self.method != "full":
            raise ValueError(f"optimizer: muon trains all weights; with sft.method {self.method} use `trainer`")
        for key in self.trainer:
            if self.optimizer == "muon" and key.startswith(("optim", "adam_")):
                raise ValueError(f"trainer.{key} is for sft.optimizer: trainer; muon does not read it")
        if self.method == "prompt" and self.trainer.get("weight_decay"):
            raise ValueError("trainer.weight_decay would shrink the whole vocabulary; set it to 0 with method prompt")
        if self.packing and self.method == "prefix":
            raise ValueError("packing: a prefix is before a row, not before each sample; set it to false")
        if self.packing and "max_length" in self.trainer and self.trainer["max_length"] is None:
            raise ValueError("packing needs sft.trainer.max_length, the tokens of a packed row")
        return self
