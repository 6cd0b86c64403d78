"""One prompt, one split: what drops the rows whose prompt is in an earlier split, and rows that are there twice."""

from __future__ import annotations

import numpy as np

from tasks.lib.data.row_index import Index
from tasks.lib.data.rows import Row
from tasks.lib.data.splits import SPLITS

PARTS = 16  # of the prompts, by their hash


def drop_shared_prompts(index: Index, ledger: list[Row]) -> None:
    """Drop a row whose prompt is in an earlier split of SPLITS: evaluation keeps it, training loses it.

    Of rows with equal ids, which equal raw rows make, the first one stays. A part of all prompts at a time, because
    sorting takes memory; a row with an equal id has an equal prompt, so it is in the same part.
    """
    is_kept = np.zeros(len(index.rows), bool)
    entries: dict[int, Row] = {}  # number of a row in the index -> its entry in the ledger
    for part in range(PARTS):
        numbers = np.flatnonzero(index.rows.prompt % PARTS == part)  # (n,) of the rows of this part
        rows = index.rows[numbers]
        first_split = _first_splits(rows.prompt, rows.split)
        at_home = np.flatnonzero(rows.split == first_split)
        _, first_of_id = np.unique(rows.id[at_home], return_index=True)
        is_kept[numbers[at_home[first_of_id]]] = True
        for i in np.flatnonzero(~is_kept[numbers]):
            row, split = rows[i], SPLITS[first_split[i]]
            entry = {"id": f"{row.id:016x}", "rule": "rendered twice", "detail": f"raw row {row.raw:016x}"}
            if SPLITS[row.split] != split:
                entry |= {"rule": "prompt in two splits", "detail": f"{SPLITS[row.split]}: also {split}"}
            entries[int(numbers[i])] = entry
    for number in sorted(entries):
        ledger.append(entries[number])
    index.keep(np.flatnonzero(is_kept))


def _first_splits(prompt: np.ndarray, split: np.ndarray) -> np.ndarray:
    """(n,) of each row the first split in which its prompt is."""
    different, which = np.unique(prompt, return_inverse=True)
    first = np.full(len(different), len(SPLITS), np.uint8)
    np.minimum.at(first, which, split)
    return first[which]
