"""Padding is masked by length, and batches of about equal length hold every row once."""

from __future__ import annotations

from itertools import chain

import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.models.batches import (
    batches_by_length,
    budget_of,
    halved,
    left_pad,
    position_ids,
    right_pad,
    shuffled_batches,
    tight_batches,
    token_batches,
)


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


def rows_in(batches: list[list[int]]) -> list[int]:
    """All rows of some batches, in order."""
    return sorted(chain.from_iterable(batches))


def test_shuffled_batches_hold_every_row_once_in_full_batches_of_like_length() -> None:
    lengths = [i * 37 % 101 for i in range(203)]
    batches = shuffled_batches(lengths, 8, seed=1)
    assert rows_in(batches) == list(range(203))
    assert [len(batch) for batch in batches] == [8] * 25 + [3]
    for batch in batches:
        own = [lengths[row] for row in batch]
        assert max(own) - min(own) < 10
    assert batches == shuffled_batches(lengths, 8, seed=1) != shuffled_batches(lengths, 8, seed=2)


def test_a_token_budget_makes_batches_of_equal_cost_and_as_many_with_every_seed() -> None:
    lengths = [4] * 5 + [3] * 2 + [12]
    batches = token_batches(lengths, 8, seed=1)
    assert rows_in(batches) == list(range(8))
    own: list[list[int]] = []
    for batch in batches:
        own.append(sorted(lengths[row] for row in batch))
    assert sorted(own) == [[3], [3, 4], [4, 4], [4, 4], [12]]
    others = [token_batches(lengths, 8, seed=seed) for seed in range(9)]
    assert {len(other) for other in others} == {5} and any(other != batches for other in others)
    shared_out = token_batches(lengths, 8, seed=1, multiple_of=3)
    assert len(shared_out) == 6 and rows_in(shared_out) == list(range(8))


def test_batches_by_length_start_with_the_shortest_or_with_the_longest() -> None:
    lengths = [1, 5, 3, 5]
    assert batches_by_length(lengths, 2) == [[0, 2], [1, 3]]
    assert batches_by_length(lengths, 3, longest_first=True) == [[1, 3, 2], [0]]
    assert batches_by_length(lengths, 2, [3, 0, 2]) == [[0, 2], [3]]


def test_a_batch_of_too_many_tokens_is_cut_and_a_longer_row_is_alone() -> None:
    lengths = [4, 2, 9, 3, 2]
    assert batches_by_length(lengths, 5, tokens=45) == [[1, 4, 3, 0, 2]]  # 5 rows of 9
    assert batches_by_length(lengths, 5, tokens=8) == [[1, 4], [3, 0], [2]]


def test_a_batch_is_halved_where_that_saves_more_padding_than_a_pass_costs() -> None:
    """Halving 4 rows of 10 and 4 of 60 saves 4 * 50 columns, more than 128; halving again would save none."""
    lengths = [10, 60] * 4
    assert halved(range(8), lengths) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert halved(range(4), lengths) == [[0, 2, 1, 3]]  # 2 * 50 columns
    assert halved([5], lengths) == [[5]]
    assert tight_batches(lengths, 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert tight_batches(lengths, 8, [3, 2, 1, 0]) == [[0, 2, 1, 3]]


def test_batches_are_counted_in_tokens_where_lengths_are_very_different() -> None:
    """Lengths 1 and 9: mean 5, standard deviation 4. Lengths 2 and 8: standard deviation 3, of 5 less than 0.7."""
    assert budget_of([1, 9] * 10, 16) == 80
    assert budget_of([2, 8] * 10, 16) is None
