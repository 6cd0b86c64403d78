"""How pairs of answers with equal rank count in the loss of the reward model."""

from __future__ import annotations

from typing import Literal

Ties = Literal["rao_kupper", "davidson", "drop"]
"""Two models of a tie, or none; tasks/lib/reward/ranking_loss.py has the formulas."""
