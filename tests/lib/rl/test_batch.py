"""A batch hands out its rows in passes of like length, and results come back in the order of the rows."""

from __future__ import annotations

from tasks.lib.rl.batch import Batch, Pass, Prompt

LENGTHS = [30, 2, 300, 1]  # of the prompts; every answer has two tokens
BATCH = Batch([Prompt(str(length), [7] * length) for length in LENGTHS], [[5, 1]] * 4, batch_size=2)


def test_a_pass_has_at_most_batch_size_rows_of_like_length_the_shortest_first() -> None:
    """30 and 300 would fit into one pass, whose padding costs more than another pass."""
    passes = BATCH.passes(range(4))
    assert [part.rows for part in passes] == [[3, 1], [0], [2]]
    assert passes[0] == Pass(rows=[3, 1], prompts=[[7], [7, 7]], answers=[[5, 1], [5, 1]])


def test_the_passes_of_a_minibatch_hold_its_rows_alone() -> None:
    assert [part.rows for part in BATCH.passes([2, 1, 3])] == [[3, 1], [2]]


def test_map_gives_the_results_in_the_order_of_the_rows() -> None:
    assert BATCH.map(lambda part: [len(prompt) for prompt in part.prompts]) == LENGTHS
