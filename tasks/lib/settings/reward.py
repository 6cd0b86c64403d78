"""The section `reward` of params.yaml: the reward model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from tasks.lib.settings.methods import HeadMethod
from tasks.lib.settings.ties import Ties


class Training(BaseModel, extra="forbid"):
    """How the reward model is trained. Every key but `checkpoint_every` decides the result."""

    optimizer: Literal["muon", "adamw"]
    """Muon trains all weights of a small model; AdamW is for everything else."""
    epochs: int = Field(ge=1)
    """How often each ranking is trained on."""
    prompts_per_step: int = Field(ge=1)
    """Prompts of one step; each comes with all its answers and annotators."""
    tokens_per_pass: int | None = Field(ge=1)
    """Most tokens, padding included, of one forward and backward pass; decides the memory, not the step."""
    learning_rate: float = Field(gt=0)
    """Its highest value; about 1e-5 for large models."""
    warmup_share: float = Field(ge=0, lt=1)
    """Fraction of the steps over which the learning rate rises."""
    weight_decay: float = Field(ge=0)
    """How strongly AdamW pulls weights to 0."""
    max_grad_norm: float = Field(gt=0)
    """Length to which a longer gradient is cut."""
    ties: Ties
    """The model of equal ranks, or `drop` to leave such pairs out."""
    tie_parameter: float = Field(gt=0)
    """The parameter of that model: how likely a tie is between equally good answers."""
    centring: float = Field(ge=0)
    """Weight of the penalty on rewards far from 0; 0 lets their mean drift."""
    strength_margin: float = Field(ge=0)
    """Difference of rewards demanded of a pair at full strength; 0 ignores degrees of preference."""
    annotator_weights: Literal["equal", "reliability"]
    """Whether every annotator counts the same, or by how often they agree with the others."""
    share_prompt: bool
    """Whether a prompt is computed once for all its answers."""
    attributes: list[str]
    """Ratings that extra outputs of the model learn; must be among `preferences.attributes`."""
    attribute_weight: float = Field(gt=0)
    """Weight of their error in the loss; the ranking loss has weight 1."""
    checkpoint_every: int = Field(ge=1)
    """Steps that a killed run may have to repeat."""

    @model_validator(mode="after")
    def theta_above_one(self) -> Training:
        if self.ties == "rao_kupper" and self.tie_parameter <= 1:
            raise ValueError("tie_parameter must be above 1 for rao_kupper (1 says that ties cannot happen)")
        return self


class Params(BaseModel, extra="forbid"):
    heads: int = Field(ge=1)
    """Rewards that are learned side by side; several show where the model is unsure."""
    method: HeadMethod
    """Which weights are trained."""
    lora: Annotated[dict[str, Any], "peft.tuners.lora.config.LoraConfig"]
    """Fields of peft's configuration; empty unless `method` is lora."""
    training: Training
    batch_size: int = Field(ge=1)
    """Answers scored at a time; lower it when memory runs out."""
    reference_prompts: int = Field(ge=1)
    """Prompts whose answers set the zero and the unit of the reward."""
    require_above_chance: bool
    """Whether a model that orders held-out pairs no better than chance stops the stage."""

    @model_validator(mode="after")
    def lora_has_its_method(self) -> Params:
        if self.lora and self.method != "lora":
            raise ValueError(f"lora is set, but reward.method is {self.method}; set it to lora")
        return self
