"""Padding is masked by length, and batches of about equal length hold every row once."""

from __future__ import annotations

import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.models.batches import (
    buckets,
    budget_batches,
    halved,
    left_pad,
    minibatches,
    position_ids,
    right_pad,
)  # fmt: skip


def test_masks_come_from_lengths_even_if_the_pad_token_is_in_the_text() -> None:
    ids, is_token = left_pad([[7, 7], [1, 2, 7]], pad_id=7)
    assert ids.tolist() == [[7, 7, 7], [1, 2, 7]]
    assert is_token.tolist() == [[False, True, True], [True, True, True]]
    ids, is_token = right_pad([[7, 7], [1, 2, 7]], pad_id=7)
    assert is_token.tolist() == [[True, True, False], [True, True, True]]


def test_positions_count_from_the_first_token() -> None:
    _, is_token = left_pad([[5, 6], [1, 2, 3, 4]], 0)
    assert position_ids(is_token).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_left_padding_does_not_change_logits() -> None:
    model = tiny_llama(tiny_tokenizer()).eval()
    short, long = [9, 8, 7], [1, 2, 3, 4, 5, 6]
    ids, is_token = left_pad([short, long], pad_id=0)
    padded = model(ids, attention_mask=is_token.long(), position_ids=position_ids(is_token)).logits[0, -3:]
    alone = model(torch.tensor([short])).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-6, rtol=0)


def test_minibatches_hold_every_row_once_in_full_batches_of_like_length() -> None:
    lengths = [i * 37 % 101 for i in range(203)]
    batches = minibatches(lengths, 8, seed=1)
    assert sorted(row for batch in batches for row in batch) == list(range(203))
    assert [len(batch) for batch in batches] == [8] * 25 + [3]
    width = max(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches)
    assert width < 10
    assert batches == minibatches(lengths, 8, seed=1) != minibatches(lengths, 8, seed=2)


def test_a_token_budget_makes_batches_of_equal_cost_and_as_many_with_every_seed() -> None:
    lengths = [4] * 5 + [3] * 2 + [12]
    batches = budget_batches(lengths, 8, seed=1)
    assert sorted(row for batch in batches for row in batch) == list(range(8))
    assert sorted(sorted(lengths[row] for row in batch) for batch in batches) == [
        [3], [3, 4], [4, 4], [4, 4], [12],
    ]  # fmt: skip
    others = [budget_batches(lengths, 8, seed=seed) for seed in range(9)]
    assert {len(other) for other in others} == {5} and any(other != batches for other in others)
    shared_out = budget_batches(lengths, 8, seed=1, multiple_of=3)
    assert len(shared_out) == 6 and sorted(row for batch in shared_out for row in batch) == list(range(8))


def test_buckets_start_with_the_longest() -> None:
    assert buckets([1, 5, 3], 2) == [[1, 2], [0]]


def test_a_batch_is_halved_where_that_saves_more_padding_than_a_pass_costs() -> None:
    """Halving 4 rows of 10 and 4 of 60 saves 4 * 50 columns, more than 128; halving again would save none."""
    lengths = [10, 60] * 4
    assert halved(range(8), lengths) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert halved(range(4), lengths) == [[0, 2, 1, 3]]  # 2 * 50 columns
    assert halved([5], lengths) == [[5]]
