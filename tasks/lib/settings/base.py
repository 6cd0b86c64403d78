"""The section `base` of params.yaml: the model that the pipeline starts from."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

SystemRole = Literal["merge", "refuse"]


class Tiny(BaseModel, extra="forbid"):
    """The shape of the Llama that is made new for `model: embedded`; other models bring their own."""

    vocab_size: int = Field(ge=300)
    """Tokens that the tokenizer learns from the text; the 256 bytes and the special tokens are among them."""
    hidden: int = Field(ge=8)
    """Width of every layer's input and output; a multiple of `heads`."""
    layers: int = Field(ge=1)
    """Transformer blocks; distillation keeps some of them."""
    heads: int = Field(ge=1)
    """Attention heads per block."""
    feed_forward: int = Field(ge=8)
    """Hidden units of each block's feed-forward network."""
    context: int = Field(ge=16)
    """Tokens of the longest prompt and answer that the model can read."""
    rope_theta: float = Field(gt=0)
    """Longest wavelength of the rotary positions; raise it together with `context`."""


class Pretraining(BaseModel, extra="forbid"):
    """Next-token prediction on the text, before anything is fine-tuned."""

    steps: int = Field(ge=0)
    """Optimiser steps; 0 for a model that somebody else pre-trained."""
    batch_size: int = Field(ge=1)
    """Blocks in one step."""
    sequence_length: int = Field(ge=8)
    """Tokens of a block; at most the model's context."""
    learning_rate: float = Field(gt=0)
    """Of Muon, at its highest; the embedded model needs more than a large one."""
    warmup: int = Field(ge=0)
    """Steps over which the learning rate rises from 0."""
    heldout_blocks: int = Field(ge=1)
    """Blocks that are not trained on and measure the perplexity; more of them measure it better."""
    save_every: int = Field(ge=1)
    """Steps that a killed run may have to repeat; does not change the result."""


class Params(BaseModel, extra="forbid"):
    model: str
    """`embedded`; the id of a model on the Hub; a folder; a .gguf file; or `package:file.gguf`, a file inside an
    installed package. What a folder or file holds is not tracked, only its name."""
    revision: str | None
    """The commit or tag of a Hub model; null for anything else."""
    template_date: date | None
    """What "today" is for a chat template that writes the date; null refuses such a template."""
    system_role: SystemRole
    """What a system message becomes if the chat template has none: the beginning of the first question, or an error."""
    text: Path
    """A file with one document per line."""
    tiny: Tiny
    pretraining: Pretraining
