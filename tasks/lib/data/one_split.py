"""One prompt, one split: drops rows whose prompt is in a split of higher priority too, and rows that occur twice."""

from __future__ import annotations

import numpy as np

from tasks.lib.data.row_index import Index
from tasks.lib.data.rows import Row
from tasks.lib.data.splits import SPLITS

PARTS = 16  # of the prompts, by their hash


def keep_in_one_split(index: Index, ledger: list[Row]) -> None:
    """Drop a row whose prompt is also in a split of higher priority (SPLITS): evaluation keeps it, training loses it.

    Equal raw rows make rows of equal ids, of which the first one stays. Sorting takes memory, so the prompts are done
    in PARTS; rows of equal ids have equal prompts, so they are in one part.
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
            if SPLITS[row.split] == split:
                rule, detail = "rendered twice", f"raw row {row.raw:016x}"
            else:
                rule, detail = "prompt in two splits", f"{SPLITS[row.split]}: also {split}"
            entries[int(numbers[i])] = {"id": f"{row.id:016x}", "rule": rule, "detail": detail}
    for number in sorted(entries):
        ledger.append(entries[number])
    index.keep(np.flatnonzero(is_kept))


def _first_splits(prompt: np.ndarray, split: np.ndarray) -> np.ndarray:
    """(n,) of each row the first split in which its prompt is."""
    different, which = np.unique(prompt, return_inverse=True)
    first = np.full(len(different), len(SPLITS), np.uint8)
    np.minimum.at(first, which, split)
    return first[which]
