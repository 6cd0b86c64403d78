"""The section `dpo` of params.yaml: direct preference optimisation, or KTO."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator


class Params(BaseModel, extra="forbid"):
    launcher: str
    """The program that starts the stage's processes; docs/distributed.md has complete ones."""
    method: Literal["dpo", "kto"]
    """Whether pairs are learned, or single answers."""
    thumbs: str | None
    """With kto, the rating that says good or bad; null derives it from the rankings."""
    pairs_per_prompt: int = Field(ge=1)
    """Pairs of one prompt, at most; more give much-annotated prompts more weight."""
    share_prompt: bool
    """Whether a prompt is computed once for all answers of its pairs; pays where prompts are long."""
    samples: int = Field(ge=0)
    """Held-out prompts that measure the KL after training; 0 measures none."""
    max_new_tokens: int = Field(ge=1)
    """Tokens of an answer to these prompts, at most."""
    lora: Annotated[dict[str, Any] | None, "peft.tuners.lora.config.LoraConfig"]
    """Fields of peft's configuration: adapters are trained, which saves a reference model; null: all weights."""
    trainer: Annotated[dict[str, Any], "trl.trainer.dpo_config.DPOConfig", "trl.trainer.kto_config.KTOConfig"]
    """Fields of TRL's configuration of the method; what is left out has TRL's default."""

    @model_validator(mode="after")
    def settings_fit_the_method(self) -> Params:
        if self.method == "kto":
            if self.share_prompt:
                raise ValueError("share_prompt is for pairs; kto has none: set it to false")
            if self.trainer.get("precompute_ref_log_probs"):
                raise ValueError("trainer.precompute_ref_log_probs cannot be used with kto, whose batches are shuffled")
        elif self.thumbs is not None:
            raise ValueError("thumbs needs dpo.method: kto; dpo needs pairs")
        return self

    @model_validator(mode="after")
    def a_shared_prompt_has_a_stored_reference(self) -> Params:
        if self.share_prompt and not self.trainer.get("precompute_ref_log_probs", True):
            raise ValueError("share_prompt needs dpo.trainer.precompute_ref_log_probs: true")
        return self
