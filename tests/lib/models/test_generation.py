"""Answers are cut after their first EOS, and depend on prompt and seed alone."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import GenerationConfig

from tasks.lib.models.batches import left_pad
from tasks.lib.models.generation import generate, sampled
from tasks.lib.models.logprobs import answer_logprobs
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


@pytest.fixture
def ending(model):
    """A model whose answers end early, at different places."""
    model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    model.lm_head.weight.data.mul_(2)
    model.lm_head.bias.data.zero_()[EOS] = 3.0
    return model


def test_an_answer_ends_with_its_first_eos_or_at_the_limit(ending) -> None:
    drawn = answers(ending, PROMPTS * 50, batch_size=40)
    assert {len(answer) for answer in drawn} == set(range(1, 7))
    assert not any(EOS in answer[:-1] for answer in drawn)
    assert all(answer[-1] == EOS for answer in drawn if len(answer) < 6)


def test_greedy_answers_are_those_of_transformers(ending) -> None:
    """Rows that ended leave the batch: the others must not notice. Its `generate` keeps them."""
    chance = random.Random(0)
    prompts = []
    for _ in range(64):
        length = chance.randint(1, 12)
        prompts.append([chance.randrange(2, 40) for _ in range(length)])
    ids, is_token = left_pad(prompts, 0)
    settings = GenerationConfig(max_new_tokens=6, eos_token_id=EOS, pad_token_id=0)
    theirs = ending.generate(input_ids=ids, attention_mask=is_token.long(), generation_config=settings)
    ours = answers(ending, prompts, temperature=0, batch_size=64)
    assert len({len(answer) for answer in ours}) > 2
    for answer, row in zip(ours, theirs[:, ids.shape[1] :].tolist(), strict=True):
        assert answer + [0] * (len(row) - len(answer)) == row


def test_draws_share_the_prompts_pass_and_nothing_else(ending) -> None:
    thrice = []
    for answer in answers(ending, temperature=0):
        thrice += [answer] * 3
    assert answers(ending, temperature=0, draws=3) == thrice
    drawn = answers(ending, draws=3, batch_size=6)
    assert len(drawn) == 12
    assert len({tuple(answer) for answer in drawn[:3]}) > 1


def test_the_nucleus_holds_the_likeliest_tokens_up_to_its_share(model) -> None:
    """Draws come from the fewest tokens that together reach top_p, in the proportions of the softmax."""
    logits = model(torch.tensor([[4]])).logits[0, -1]
    likeliest, tokens = logits.softmax(-1).sort(descending=True)
    size = int((likeliest.cumsum(-1) < 0.3).sum()) + 1
    drawn = [a[0] for a in answers(model, [[4]], max_new_tokens=1, draws=4000, top_p=0.3)]
    assert set(drawn) == set(tokens[:size].tolist())
    share = likeliest[0].item() / likeliest[:size].sum().item()
    assert drawn.count(int(tokens[0])) / 4000 == pytest.approx(share, abs=4 * (share / 4000) ** 0.5)


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
    assert answers(model, inside, pad_id=EOS, temperature=0) == answers(model, inside, pad_id=0, temperature=0)


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


def test_the_log_probs_of_a_roll_out_are_those_of_its_answers(model) -> None:
    """Read token by token from the KV cache, they are what one pass over the whole answers finds."""
    prompts = [[4, 5, 6, 7], [4], [9, 8]]
    answers, drawn_at = sampled(
        model, prompts, eos_id=1, pad_id=0, max_new_tokens=6, temperature=0.7, batch_size=2, seed=3, draws=2
    )
    asked = [prompts[0]] * 2 + [prompts[1]] * 2 + [prompts[2]] * 2
    found = answer_logprobs(model, asked, answers, batch_size=6, temperature=0.7)
    for drawn, row in zip(drawn_at, found, strict=True):
        assert drawn == pytest.approx(row.tolist(), abs=1e-5)
