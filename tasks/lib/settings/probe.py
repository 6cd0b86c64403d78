"""The section `probe` of params.yaml, which is empty."""

from __future__ import annotations

from pydantic import BaseModel


class Params(BaseModel, extra="forbid"):
    """There is nothing to set: what is needed follows from the other sections."""
