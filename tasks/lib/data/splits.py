"""The splits of instructions. Its cluster or else its text decides the split of a raw row, so it never moves.

The share `test` of `render.shares` is no split: its rows are in `rows` and, with other templates, in `templates`.
"""

from __future__ import annotations

# new tasks, new templates, new rows: what is reported is measured on these, and no training row may be like one
EVALUATION = ("clusters", "templates", "rows")
TRAINING = ("train", "preference", "policy")
# in the order in which a prompt or a text that is in several of them is kept
SPLITS = (*EVALUATION, "validation", "policy", "preference", "train")
