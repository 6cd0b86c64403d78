"""A reward function to start from: set `ppo.reward: {function: polite:right_and_polite}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def right_and_polite(prompts: Sequence[Any], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """2 for an answer that begins with the row's label, 1 more when it goes on with something."""
    return [
        2.0 * answer.startswith(row["label"]) + (answer.startswith(row["label"]) and answer != row["label"])
        for answer, row in zip(answers, rows, strict=True)
    ]
