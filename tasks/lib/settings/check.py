"""The section `check` of params.yaml, which has no keys."""

from __future__ import annotations

from pydantic import BaseModel


class Params(BaseModel, extra="forbid"):
    """The contracts have no parameters: what good data is does not change from run to run."""
