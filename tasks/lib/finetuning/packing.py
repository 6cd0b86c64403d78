"""Packing: several samples in one row, each as if it were alone.

A packed row has no attention mask; the positions start at 0 with each sample. From that transformers makes a block
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

from tasks.lib.models.batches import right_pad
from tasks.lib.models.chat import IGNORED
from tasks.lib.stage import Problem

Row = dict[str, Any]


def packs(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in packs of at most `size` tokens, by best fit: the longest row left goes where least room is left.

    Every row is in one pack and is never cut. Problem when a row is longer than `size`.
    """
    if lengths and max(lengths) > size:
        raise Problem(f"a row of {max(lengths)} tokens does not fit a pack of {size}; raise trainer.max_length")
    made: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens of room, number of the pack) of packs with room, the least first
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        place = bisect_left(rooms, (lengths[row], 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = size, len(made)
            made.append([])
        made[number].append(row)
        if room > lengths[row]:
            insort(rooms, (room - lengths[row], number))
    return made


def packed(rows: Sequence[Row], size: int) -> list[Row]:
    """Rows {id, input_ids, labels} in packs {row, id, input_ids, labels, lengths}; `id` names all that are in it.

    The first token of a sample is not trained: the last of the sample before would predict it.
    """
    made: list[Row] = []
    for numbers in packs([len(row["input_ids"]) for row in rows], size):
        samples = [rows[number] for number in numbers]
        pack: Row = {"row": len(made), "id": " + ".join(sample["id"] for sample in samples)}
        pack |= {"input_ids": [], "labels": [], "lengths": []}
        for sample in samples:
            pack["input_ids"] += sample["input_ids"]
            pack["labels"] += [IGNORED, *sample["labels"][1:]]
            pack["lengths"].append(len(sample["input_ids"]))
        made.append(pack)
    return made


def collator_of_packs(pad_id: int, *, as_one_row: bool) -> Callable[[Sequence[Row]], dict[str, Tensor]]:
    """Packs, or rows without `lengths`, as input_ids, labels and position_ids (B, T); (1, B T) for FlashAttention."""

    def collate(packs: Sequence[Row]) -> dict[str, Tensor]:
        ids = [pack["input_ids"] for pack in packs]
        labels = [pack["labels"] for pack in packs]
        positions = [_positions(pack) for pack in packs]
        if as_one_row:
            ids, labels, positions = [[*chain(*ids)]], [[*chain(*labels)]], [[*chain(*positions)]]
        return {
            "input_ids": right_pad(ids, pad_id)[0],
            "labels": right_pad(labels, IGNORED)[0],
            "position_ids": right_pad(positions, 0)[0],  # padding: samples of one token, which nobody sees
        }

    return collate


def _positions(pack: Row) -> list[int]:
    """0, 1, 2 ... of every sample."""
    positions: list[int] = []
    for length in pack.get("lengths") or [len(pack["input_ids"])]:
        positions += range(length)
    return positions


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
    batch = collator_of_packs(0, as_one_row=takes_one_row(model))([pack])
    ids, positions = batch["input_ids"].to(model.device), batch["position_ids"].to(model.device)
    together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float().log_softmax(-1)
    start, largest = 0, 0.0
    for length in pack["lengths"]:
        end = start + length
        alone = model(input_ids=ids[:, start:end], use_cache=False).logits[0].float().log_softmax(-1)
        largest = max(largest, (together[start:end] - alone).abs().max().item())
        start = end
    if not largest < (1e-3 if model.dtype == torch.float32 else 0.5):
        raise Problem(
            f"sft.packing: {model.config.model_type} lets the samples of a row see each other (log-probabilities "
            f"differ by {largest:.2g}); set it to false"
        )
