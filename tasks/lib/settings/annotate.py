"""The section `annotate` of params.yaml: where the annotations come from."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field


class Params(BaseModel, extra="forbid"):
    source: Path
    """The file of a simulated panel, or the folder that holds your annotation tool's exports."""
    exports: list[str]
    """Names of files relative to the folder `source`; empty with a panel."""
    careless: float = Field(ge=0, lt=1)
    """Fraction of the simulated annotations that carry no judgement; without effect on exports."""
