"""Claims about an ensemble of reward heads: who learns from what, and what disagreement means."""

from __future__ import annotations

import math
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tasks.lib.reward.accuracy import OrderedPair
from tasks.lib.reward.ensemble import bootstrap_counts, disagreement, ensemble_figures
from tasks.lib.reward.reward_model import score


def test_every_head_learns_from_a_bootstrap_sample_of_its_own_and_one_alone_from_all():
    counts = [bootstrap_counts(f"{n:x}", 3, seed=1) for n in range(2000)]
    for head in range(3):
        mine = [of_prompt[head] for of_prompt in counts]
        assert fmean(mine) == pytest.approx(1, abs=0.05)
        assert mine.count(0) / len(mine) == pytest.approx(1 / math.e, abs=0.03)  # as in a bootstrap sample
    assert len({tuple(of_head) for of_head in zip(*counts, strict=True)}) == 3
    assert counts[:5] == [bootstrap_counts(f"{n:x}", 3, seed=1) for n in range(5)]
    assert bootstrap_counts("a", 1, seed=1) == [1]


def test_disagreement_is_the_spread_of_the_probabilities_of_a_pair():
    """One head says that a is three times as likely to be better, the other that b is: 0.75 and 0.25."""
    opposite = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    assert disagreement(opposite) == pytest.approx(0.25)
    assert disagreement(opposite, temperature=100.0) == pytest.approx(0.0, abs=0.01)
    assert disagreement(opposite + torch.tensor([5.0, -5.0])) == pytest.approx(0.25)  # offsets order nothing
    assert disagreement(torch.tensor([[1.0, 1.0], [0.0, 0.0]])) == 0
    assert disagreement(torch.tensor([[1.0, 2.0]])) == 0  # one answer: no pair


def judged(*margins: float) -> list[OrderedPair]:
    return [OrderedPair("p", "ada", margin, 0) for margin in margins]


def test_the_figures_tell_agreed_from_contested_pairs():
    by_head = [judged(1, 1, -1, -1), judged(3, 2, 2, -2)]
    found = ensemble_figures(judged(2, 1.5, 0.5, -1.5), by_head, [0.1, 0.3])
    assert found == {
        "disagreement": pytest.approx(0.2),
        "accuracy_head_mean": pytest.approx((0.5 + 0.75) / 2),
        "contested_share": 0.25,
        "accuracy_agreed": pytest.approx(2 / 3),
        "accuracy_contested": 1.0,
    }
    assert ensemble_figures(judged(1), [judged(1)], [0.0]) == {}


def test_disagreement_of_the_heads_is_taken_from_the_score() -> None:
    """Heads 1 and 3 after their means 1 and 1, std 2: (0 and 1), mean 0.5, population std 0.5."""
    model = SimpleNamespace(
        config=LlamaConfig(
            hidden_size=2,
            num_attention_heads=1,
            pad_token_id=0,
            reward_heads=2,
            reward_mean=1.0,
            reward_std=2.0,
            reward_head_means=[1.0, 1.0],
        ),
        score=torch.nn.Linear(2, 2, bias=False),
        device=torch.device("cpu"),
        dtype=torch.float32,
        base_model=lambda input_ids, **_: SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 2)),
    )
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor([[0.5, 0.5], [1.5, 1.5]]))
    given: Any = {"prompts": [[4]], "answers": [[5]], "batch_size": 1}
    assert score(model, **given) == [0.5]
    assert score(model, **given, disagreement_weight=1.0) == [0.0]
    assert score(model, **given, disagreement_weight=0.5) == [0.25]
