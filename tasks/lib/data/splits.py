"""The splits of instructions. The text of a raw row decides its split, so it never moves."""

from __future__ import annotations

# new tasks, new templates, new rows: what is reported is measured on these, and no training row may be like one
EVALUATION = ("clusters", "templates", "rows")
TRAINING = ("train", "preference", "policy")
# in the order in which a prompt or a text that is in several of them is kept
SPLITS = (*EVALUATION, "validation", "policy", "preference", "train")
