"""Answers are cut after their first EOS, and depend on prompt and seed alone."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.policy.generation import cut_after, generate
from tasks.lib.policy.logprobs import answer_logprobs
from tasks.lib.stage import Problem

EOS = 1
PROMPTS = [[5, 6, 7, 8, 9], [4], [9, 8, 7], [6, 6]]


@pytest.fixture
def model():
    return tiny_llama(tiny_tokenizer()).eval()


def answers(model, prompts=PROMPTS, **changes) -> list[list[int]]:
    settings = {
        "eos_id": EOS,
        "pad_id": 0,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "batch_size": 4,
        "seed": 0,
    }
    return generate(model, prompts, **settings | changes)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 5, 6, 7], [1]),  # EOS first
        ([5, 6, 7, 1], [5, 6, 7, 1]),  # last
        ([5, 6, 7, 8], [5, 6, 7, 8]),  # missing
        ([5, 1, 1, 7], [5, 1]),  # double
    ],
)
def test_an_answer_ends_with_its_first_eos(ids: list[int], expected: list[int]) -> None:
    assert cut_after(ids, EOS) == expected


def test_greedy_answers_depend_on_the_prompt_alone(model) -> None:
    together = answers(model, temperature=0)
    assert together == answers(model, temperature=0, batch_size=1, seed=9)
    assert together == answers(model, PROMPTS[::-1], temperature=0)[::-1]


def test_the_greedy_answer_is_the_most_likely_token_each_time(model) -> None:
    ids = list(PROMPTS[0])
    for token in answers(model, PROMPTS[:1], temperature=0)[0]:
        assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_samples_are_a_function_of_the_seed_and_leave_the_random_state_alone(model) -> None:
    before = torch.get_rng_state()
    first = answers(model, PROMPTS * 4, batch_size=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert answers(model, PROMPTS * 4, batch_size=3) == first
    assert answers(model, PROMPTS * 4, batch_size=3, seed=1) != first


def test_samples_come_from_the_bare_softmax_whatever_the_models_own_settings(model) -> None:
    """PPO's ratio is 1 only if nothing (top-k, penalties) bends the distribution: compare with log-probs."""
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.top_k = 1
    first = answers(model, [[4]] * 2000, max_new_tokens=1, batch_size=2000, temperature=0.7)
    share = sum(a == [7] for a in first) / len(first)
    chance = answer_logprobs(model, [[4]], [[7]], batch_size=1, temperature=0.7)[0].exp().item()
    assert share == pytest.approx(chance, abs=4 * (chance / 2000) ** 0.5)
    assert len({tuple(a) for a in first}) > 100
    assert model.generation_config.repetition_penalty == 9.0


def test_a_pad_token_that_is_the_eos_changes_nothing(model) -> None:
    assert answers(model, pad_id=EOS) == answers(model, pad_id=0)
    inside = [[5, EOS, 6], [4]]  # an EOS inside a prompt is a token like others
    assert answers(model, inside, pad_id=EOS, temperature=0) == answers(
        model, inside, pad_id=0, temperature=0
    )


def test_no_prompts_give_no_answers(model) -> None:
    assert answers(model, []) == []


def test_impossible_prompts_are_problems(model) -> None:
    with pytest.raises(Problem, match="prompt 1 has no tokens"):
        answers(model, [[4], []])
    with pytest.raises(Problem, match="60 tokens and 6 new ones exceed the model's 64 positions"):
        answers(model, [[4] * 60])


def test_weights_that_give_nan_are_a_problem_not_a_traceback(model) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(Problem, match="probabilities are not finite"):
        answers(model)
