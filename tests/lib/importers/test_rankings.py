"""Claims about the rules that hold for rankings of every tool."""

from __future__ import annotations

from tasks.lib.data.prompts import prompt_key
from tasks.lib.importers.cleaning import cleaned
from tasks.lib.importers.rankings import Ranking, collapse_whitespace, is_heldout_prompt

PROMPT = [{"role": "user", "content": "Q"}]


def judged(answers: list[str], ranks: list[int], where: str = "f:1", annotator: str = "ann", time: str = "") -> Ranking:
    return Ranking(where, PROMPT, answers, ranks, annotator, "test", order=(time, 0))


def test_equal_answers_are_one_answer_with_the_better_rank():
    (row,), dropped, counts = cleaned([judged(["x", "y", " x\n"], [2, 1, 0])], "MIT")
    assert dict(zip(map(collapse_whitespace, row["answers"]), row["ranks"], strict=True)) == {"x": 0, "y": 1}
    assert counts["removed_equal_answers"] == 1 and not dropped


def test_fewer_than_two_answers_are_no_ranking():
    rows, dropped, _ = cleaned([judged(["x", " "], [0, 1]), judged(["x", "x "], [0, 1]), judged(["x"], [0])], "MIT")
    assert not rows
    assert [item.rule for item in dropped] == ["empty_answer", "equal_answers", "too_few_answers"]


def test_gaps_in_ranks_are_closed():
    (row,), _, _ = cleaned([judged(["x", "y", "z"], [7, 3, 7])], "MIT")
    assert row["ranks"] == [1, 0, 1]


def test_the_last_word_of_an_annotator_counts():
    first, last = (
        judged(["x", "y"], [0, 1], "f:1", time="08:00"),
        judged(["y", "x"], [0, 1], "f:2", time="09:00"),
    )
    for order in ([first, last], [last, first]):
        (row,), dropped, counts = cleaned(order, "MIT")
        assert (row["answers"], row["ranks"]) == (["y", "x"], [0, 1])
        assert [(item.where, item.rule) for item in dropped] == [("f:1", "annotator_twice")]
        assert counts["changed_minds"] == 1


def test_two_annotators_may_disagree():
    rows, dropped, _ = cleaned([judged(["x", "y"], [0, 1]), judged(["x", "y"], [1, 0], annotator="bob")], "MIT")
    assert len(rows) == 2 and not dropped


def test_an_annotator_who_goes_in_circles_is_not_heard():
    circle = [judged(["x", "y"], [0, 1]), judged(["y", "z"], [0, 1]), judged(["z", "x"], [0, 1])]
    rows, dropped, _ = cleaned(circle, "MIT")
    assert not rows and {item.rule for item in dropped} == {"cycle"}
    assert len(cleaned(circle[:2], "MIT")[0]) == 2


def test_the_split_goes_by_prompt_and_ignores_white_space():
    assert prompt_key(PROMPT) == prompt_key([{"role": "user", "content": " Q\n"}])
    share = sum(is_heldout_prompt([{"role": "user", "content": str(i)}], 0.2) for i in range(2000)) / 2000
    assert abs(share - 0.2) < 0.03


def test_rows_do_not_depend_on_the_order_of_the_files():
    a, b = judged(["x", "y"], [0, 1]), judged(["x", "y"], [1, 0], annotator="bob")
    assert cleaned([a, b], "MIT")[0] == cleaned([b, a], "MIT")[0]
