"""Pairs are what most annotators prefer, the best answers first, whatever the order of the rankings."""

from __future__ import annotations

from tiny_models import WORDS, ranking

from tasks.lib.dpo.pairs import pairs_of


def test_pairs_are_the_majority_of_the_annotators_without_ties() -> None:
    """a > b by two of three; a > c by one, c > a by one, one tie; b = c by two, c > b by one."""
    ranks = {"ada": [0, 1, 1], "ben": [0, 2, 0], "eve": [1, 0, 0]}
    prompt = [{"role": "user", "content": "Which?"}]
    answers = ["a", "b", "c"]
    rows = [{"prompt": prompt, "answers": answers, "ranks": r, "annotator": n} for n, r in ranks.items()]
    pairs, facts = pairs_of(rows, 9)
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("a", "b"), ("c", "b")}
    assert facts == {"prompts": 1, "annotators": 3, "ties_and_draws": 4}  # 3 single ties and the draw


def test_a_prompt_with_many_answers_does_not_count_more() -> None:
    many = ranking(0) | {"answers": WORDS, "ranks": list(range(12))}
    pairs, facts = pairs_of([many, ranking(1)], 2)
    first = [(pair["chosen"], pair["rejected"]) for pair in pairs[:2]]
    assert first == [(WORDS[0], WORDS[1]), (WORDS[0], WORDS[2])]  # the best answer and the next ones
    assert len(pairs) == 4
    assert facts == {"prompts": 2, "annotators": 1, "ties_and_draws": 0}


def test_the_order_of_annotators_and_answers_changes_nothing() -> None:
    turned = ranking(0) | {"answers": ranking(0)["answers"][::-1], "ranks": [2, 1, 0]}
    other = ranking(0, "ben")
    assert pairs_of([turned, other], 2) == pairs_of([other, ranking(0)], 2)


def test_an_annotator_has_one_vote_on_a_pair() -> None:
    """Ada ranks a above b twice, among other answers the second time; Ben ranks b above a: a draw."""
    rankings = [
        ranking(0) | {"answers": ["a", "b"], "ranks": [0, 1]},
        ranking(0) | {"answers": ["a", "b", "c"], "ranks": [0, 1, 1]},
        ranking(0, "ben") | {"answers": ["a", "b"], "ranks": [1, 0]},
    ]
    pairs, figures = pairs_of(rankings)
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [("a", "c")]
    assert figures["ties_and_draws"] == 2  # the draw, and the tie of b and c
