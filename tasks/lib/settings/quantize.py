"""The section `quantize` of params.yaml: the released formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

FormatName = Literal["safetensors", "safetensors-bf16", "int8", "nf4", "gguf-f16", "gguf-q8_0"]
"""A key of FORMATS (tasks/lib/export/formats.py): what a model can be written as."""


class Params(BaseModel, extra="forbid"):
    model: Path
    """Folder of the full-precision model that every format is made from."""
    name: str = Field(min_length=1)
    """The name in the GGUF files, and of these files."""
    formats: list[FormatName] = Field(min_length=1)
    """Which formats are written; `release.bounds` needs an entry for each."""
    int8_threshold: float = Field(ge=0)
    """Size of an activation from which its column is computed in 16 bits; 0 computes all in 8."""
    keep: list[str]
    """Names of modules that int8 and nf4 do not quantise."""
