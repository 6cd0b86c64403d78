"""Claims about agreement figures."""

from __future__ import annotations

from itertools import chain

import pytest

from tasks.lib.annotation.agreement import (
    agreement_with_others,
    alpha_interval,
    krippendorff_alpha,
    majority,
    rank_units,
    reliability,
    verdicts,
)


def ranking(annotator: str, *ranks: int, prompt: str = "p") -> dict:
    return {
        "prompt_key": prompt,
        "annotator": annotator,
        "answers": ["x", "y", "z"][: len(ranks)],
        "ranks": list(ranks),
    }


def test_krippendorffs_own_example():
    """Krippendorff (2011), the data of section C: 4 observers, 12 units; ordinal alpha is 0.815."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units: list[list[int]] = []
    for unit in zip(*observers, strict=True):
        units.append([value for value in unit if value is not None])
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_two_annotators_by_hand():
    # values 0 and 1, two each per annotator, agreeing once on each of 4 units: D_o = 0, so alpha = 1
    assert krippendorff_alpha([[0, 0], [1, 1]]) == pytest.approx(1)
    # always opposed: observed 4 of 4, expected 8/3 of 4 (n = 4, n - 1 = 3): 1 - 4 * 3 / 8 = -0.5
    assert krippendorff_alpha([[0, 1], [1, 0]]) == pytest.approx(-0.5)


def test_alpha_is_undefined_without_anything_to_compare():
    assert krippendorff_alpha([[1], [2]]) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None


def test_agreement_with_the_others_majority():
    rankings = [ranking("a", 0, 1), ranking("b", 0, 1), ranking("c", 1, 0)]
    # a: the others (b, c) have no majority; c: the others agree against c
    assert agreement_with_others(verdicts(rankings)) == {"c": (0.0, 1)}
    rankings.append(ranking("d", 0, 1))
    assert agreement_with_others(verdicts(rankings)) == {
        "a": (1.0, 1),
        "b": (1.0, 1),
        "c": (0.0, 1),
        "d": (1.0, 1),
    }


def test_ties_have_no_say():
    assert agreement_with_others(verdicts([ranking("a", 0, 0), ranking("b", 0, 1)])) == {}
    assert [majority(votes) for votes in ([1, 1, -1], [1, -1], [0, -1], [])] == [1, 0, -1, 0]


def test_verdicts_do_not_depend_on_the_order_of_the_answers():
    turned = {"prompt_key": "p", "annotator": "b", "answers": ["y", "x"], "ranks": [1, 0]}
    assert verdicts([ranking("a", 0, 1), turned]) == {("p", "x", "y"): {"a": 1, "b": 1}}


def test_rank_units_are_the_ranks_of_each_answer():
    rankings = [ranking("a", 0, 1), ranking("b", 1, 0), ranking("a", 0, 1, prompt="q")]
    assert rank_units(rankings) == {"p": [[0, 1], [1, 0]], "q": [[0], [1]]}


def test_the_interval_of_alpha_holds_it_and_narrows_with_prompts():
    def units(prompts: int) -> dict[str, list[list[int]]]:
        return {str(n): [[0, 1], [1, 0]] if n % 4 == 0 else [[0, 0], [1, 1]] for n in range(prompts)}

    spans = []
    for prompts in (20, 200):
        alpha = krippendorff_alpha(chain.from_iterable(units(prompts).values()))
        low, high = alpha_interval(units(prompts), seed=1) or (0.0, 0.0)
        assert alpha is not None and low < alpha < high
        spans.append(high - low)
    assert spans[1] < spans[0] / 2
    assert alpha_interval({"p": [[1], [2]]}, seed=1) is None


def test_reliability_by_hand():
    """Two pairs; all three annotators agree on p, c contradicts a and b on q. One round from rates of 0.7."""
    said = {"a": (0, 1), "b": (0, 1), "c": (1, 0)}
    rows = [ranking(name, 0, 1, prompt="p") for name in said]
    rows += [ranking(name, *ranks, prompt="q") for name, ranks in said.items()]
    odds = 0.7 / 0.3
    p, q = odds**3 / (1 + odds**3), odds / (1 + odds)  # that the first answer is truly better: 0.927 and 0.7
    rates = reliability(verdicts(rows), rounds=1)
    assert rates == pytest.approx({"a": (p + q) / 2, "b": (p + q) / 2, "c": (p + 1 - q) / 2})
    assert reliability(verdicts(rows[:2]), rounds=50) == pytest.approx({"a": 0.99, "b": 0.99})  # the bound


def test_reliability_tells_the_careful_from_the_careless():
    """Four annotators: three err on disjoint twelfths of the pairs, the fourth on every second one."""
    rankings = []
    for n in range(240):
        errs = {"a": n % 12 == 0, "b": n % 12 == 1, "c": n % 12 == 2, "coin": n % 2 == 0}
        for name, is_wrong in errs.items():
            ranks = (1, 0) if is_wrong else (0, 1)
            rankings.append(ranking(name, *ranks, prompt=str(n)))
    rates = reliability(verdicts(rankings))
    assert rates["a"] == pytest.approx(11 / 12, abs=0.03) and rates["coin"] == pytest.approx(0.5, abs=0.03)
    assert reliability({}) == {}
