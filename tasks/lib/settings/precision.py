"""What `precision` of params.yaml means for a model of some size."""

from __future__ import annotations

LARGE = 500_000_000
"""Parameters above which `auto` is bfloat16."""


def chosen_precision(precision: str, parameters: int) -> str:
    """What auto, float32 or bfloat16 means for a model of so many parameters: float32 or bfloat16."""
    if precision == "auto":
        return "bfloat16" if parameters > LARGE else "float32"
    return precision
