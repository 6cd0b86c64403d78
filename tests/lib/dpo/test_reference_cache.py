"""Log-probabilities of the reference are read again when nothing they depend on has changed, and only then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.numpy import save_file

from tasks.lib.dpo.reference_cache import _read, key_of

PAIRS = {"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5, 6]], "rejected_ids": [[7], [8]]}
FACTS = {"weights": "abc", "share_prompt": False, "batch_size": 8, "processes": 1}


def test_equal_pairs_have_the_key_they_had() -> None:
    assert key_of(PAIRS, FACTS) == key_of(copy.deepcopy(PAIRS), {**FACTS})


@pytest.mark.parametrize(
    ("pairs", "facts"),
    [
        ({"chosen_ids": [[4], [5, 9]]}, {}),
        ({"prompt_ids": [[1], [2, 3]]}, {}),  # the same ids, cut elsewhere
        ({"chosen_ids": PAIRS["rejected_ids"], "rejected_ids": PAIRS["chosen_ids"]}, {}),
        ({}, {"weights": "abd"}),
        ({}, {"share_prompt": True}),
        ({}, {"batch_size": 4}),
    ],
)
def test_anything_that_changes_a_number_changes_the_key(pairs: dict[str, Any], facts: dict[str, Any]) -> None:
    assert key_of({**PAIRS, **pairs}, {**FACTS, **facts}) != key_of(PAIRS, FACTS)


def test_another_number_of_threads_rounds_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(PAIRS, FACTS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert key_of(PAIRS, FACTS) != before


def test_a_file_that_is_damaged_or_of_another_length_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "key.safetensors"
    assert _read(file, 2) is None
    values = {side: numpy.array([-1.5, -2.25], dtype=numpy.float32) for side in ("chosen", "rejected")}
    save_file(values, file)
    columns = _read(file, 2)
    assert columns is not None and columns.keys() == {"chosen", "rejected"}
    assert columns["chosen"].tolist() == columns["rejected"].tolist() == [-1.5, -2.25]
    assert _read(file, 3) is None
    file.write_bytes(file.read_bytes()[:-3])
    assert _read(file, 2) is None
