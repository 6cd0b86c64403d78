"""The rule: beat SFT clearly, keep the content, stay near; otherwise SFT stays."""

from __future__ import annotations

import pytest

from tasks.lib.evaluation.choice import Candidate, Rule, choose_best
from tasks.lib.evaluation.intervals import Interval

RULE = Rule(max_content_loss=0.05, max_kl=10.0)


def candidate(name: str, win: float = 0.8, half: float = 0.05, change: float = -0.01, kl: float = 3.0) -> Candidate:
    return Candidate(name, Interval(win, win - half, win + half), change, kl)


def test_the_highest_win_rate_of_those_that_pass_is_chosen() -> None:
    choice = choose_best([candidate("dpo", 0.8), candidate("ppo", 0.9)], RULE, "sft")
    assert choice.name == "ppo"
    assert choice.reasons[0] == "ppo is chosen: the highest win rate of those that pass"


@pytest.mark.parametrize(("changes", "objection"), [
    ({"win": 0.52}, "win rate 0.52 [0.47, 0.57] is not clearly above 0.50"),
    ({"win": 0.55}, "not clearly above"),  # an interval that touches one half does not exclude it
    ({"win": 0.2}, "not clearly above"),
    ({"change": -0.08}, "loses 0.080 of exact match, more than the 0.05 allowed"),
    ({"kl": 12.0}, "KL 12.0 exceeds the budget of 10"),
])  # fmt: skip
def test_each_condition_alone_keeps_a_candidate_out(changes: dict[str, float], objection: str) -> None:
    choice = choose_best([candidate("ppo", **{"win": 0.95} | changes), candidate("dpo", 0.7)], RULE, "sft")
    assert choice.name == "dpo"
    assert choice.reasons[0] == "dpo is chosen: the only candidate that passes"
    assert objection in choice.reasons[1]


def test_none_is_better_than_sft_is_an_answer() -> None:
    choice = choose_best([candidate("dpo", 0.4), candidate("ppo", kl=50.0)], RULE, "sft")
    assert choice.name is None
    assert choice.reasons[0] == "sft stays: no candidate is better by the rule"
    assert len(choice.reasons) == 3


def test_the_limits_themselves_are_allowed() -> None:
    assert RULE.objections(candidate("ppo", change=-0.05, kl=10.0)) == []


def test_of_equal_win_rates_the_nearer_to_the_reference_is_chosen() -> None:
    assert choose_best([candidate("dpo", kl=4.0), candidate("ppo", kl=2.0)], RULE, "sft").name == "ppo"


def test_every_objection_is_said_not_only_the_first() -> None:
    assert len(RULE.objections(candidate("ppo", 0.3, change=-0.5, kl=99.0))) == 3
