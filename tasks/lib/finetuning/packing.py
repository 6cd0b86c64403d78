"""Packing: several samples in one row, each as if it were alone.

A packed row has no attention mask; the positions start anew with each sample. From that transformers makes a block
mask for its own attentions (eager, sdpa, flex), and FlashAttention takes each sample as a sequence, which needs a
batch that is one row. What a model makes of it is compared with its samples one by one before anything is trained.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tasks.lib.models.chat import IGNORED
from tasks.lib.stage import Problem

Row = dict[str, Any]


def packs(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in packs of at most `size` tokens, by best fit: the longest row left goes where least room is left.

    Every row stands in one pack and is never cut. Problem when a row is longer than `size`.
    """
    if lengths and max(lengths) > size:
        raise Problem(f"a row of {max(lengths)} tokens does not fit a pack of {size}; raise trainer.max_length")
    found: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens of room, number of the pack), the least room first
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(rooms, (lengths[row], 0))
        room, number = rooms.pop(place) if place < len(rooms) else (size, len(found))
        if number == len(found):
            found.append([])
        found[number].append(row)
        if room > lengths[row]:
            insort(rooms, (room - lengths[row], number))
    return found


def packed(rows: Sequence[Row], size: int) -> list[Row]:
    """Rows {id, input_ids, labels} in packs {row, id, input_ids, labels, lengths}; `id` names all that are in it.

    The first token of a sample is not trained: the last of the sample before would predict it.
    """
    found = []
    for number, pack in enumerate(packs([len(row["input_ids"]) for row in rows], size)):
        some = [rows[i] for i in pack]
        found.append({
            "row": number,
            "id": " + ".join(row["id"] for row in some),
            "input_ids": [token for row in some for token in row["input_ids"]],
            "labels": [label for row in some for label in (IGNORED, *row["labels"][1:])],
            "lengths": [len(row["input_ids"]) for row in some],
        })  # fmt: skip
    return found


def collator(pad_id: int, *, as_one_row: bool) -> Callable[[Sequence[Row]], dict[str, Tensor]]:
    """Packs, or rows without `lengths`, as input_ids, labels and position_ids (B, T); (1, B T) for FlashAttention."""

    def collate(rows: Sequence[Row]) -> dict[str, Tensor]:
        positions = [
            [place for length in row.get("lengths") or [len(row["input_ids"])] for place in range(length)]
            for row in rows
        ]
        columns = {
            "input_ids": ([row["input_ids"] for row in rows], pad_id),
            "labels": ([row["labels"] for row in rows], IGNORED),
            "position_ids": (positions, 0),  # padding: samples of one token, which nobody sees
        }
        width = max(map(len, positions))
        if as_one_row:
            return {name: torch.tensor([[*chain(*values)]]) for name, (values, _) in columns.items()}
        return {
            name: torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])
            for name, (values, fill) in columns.items()
        }

    return collate


def use_attention(model: Any, kind: str) -> None:
    """Switch a model's attention (sdpa, eager, flash_attention_2, flex_attention); Problem if it cannot be had."""
    try:
        model.set_attn_implementation(kind)
    except (ValueError, ImportError, OSError) as error:  # unknown, not installed, not for this model
        reason = " ".join(str(error).split())[:200]
        raise Problem(f"params.yaml: sft.attention: {kind} cannot be used: {reason}") from None


def takes_one_row(model: Any) -> bool:
    """Whether the model's attention knows where samples end in a batch of one row only."""
    return "flash" in model.config._attn_implementation


@torch.no_grad()
def refuse_unless_apart(model: Any, pack: Row) -> None:
    """Problem when the samples of a pack see each other: their logits are compared with those of each alone."""
    start, worst = 0, 0.0
    collate = collator(0, as_one_row=takes_one_row(model))
    inputs = {name: value.to(model.device) for name, value in collate([pack]).items() if name != "labels"}
    together = model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
    for length in pack["lengths"]:
        ids = inputs["input_ids"][:, start : start + length]
        alone = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        worst = max(worst, (together[start : start + length] - alone).abs().max().item())
        start += length
    if not worst < (1e-3 if model.dtype == torch.float32 else 0.5):
        raise Problem(
            f"sft.packing: {model.config.model_type} lets the samples of a row see each other (log-probabilities "
            f"differ by {worst:.2g}); set it to false"
        )
