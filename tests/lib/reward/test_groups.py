"""Claims about the rankings of one prompt: its answers are scored once, with or without a shared prompt."""

from __future__ import annotations

from itertools import combinations

import preference_world as world
import pytest
import torch

from tasks.lib.reward.groups import Group, all_sequences, batch_ranks, grouped, tokenize
from tasks.lib.reward.ranking_loss import ranking_loss
from tasks.lib.reward.reward_model import from_policy, rewards
from tasks.lib.reward.shared_prompt import refuse_unless_equal, shared_outputs
from tasks.lib.stage import Problem

PROMPT = [{"role": "user", "content": "The film was fine"}]


@pytest.fixture(scope="module")
def tokenizer():
    return world.tokenizer()


@pytest.fixture
def model():
    return from_policy(world.policy(), seed=1)


def test_all_annotators_of_a_prompt_share_its_answers():
    rows = [
        world.ranking("a", ["x", "y"], [0, 1]),
        world.ranking("b", ["z", "y"], [1, 0]),
        world.ranking("a", ["x", "y"], [1, 0], "Q"),
    ]
    first = next(group for group in grouped(rows) if group.prompt == PROMPT)
    assert first.answers == ["x", "y", "z"]
    assert first.ranks == [[0, 1, -1], [-1, 0, 1]]
    assert len(grouped(rows)) == 2


def test_scoring_answers_once_is_scoring_every_pair(model, tokenizer):
    """One forward pass per answer gives the loss that a pass per pair would give."""
    rows = [world.ranking("a", ["x", "y", "w"], [0, 1, 2]), world.ranking("b", ["w", "x", "v"], [1, 0, 2])]
    rows += [world.ranking("a", ["x", "y"], [1, 0], "The game was dull")]
    groups = tokenize(tokenizer, grouped(rows), None)
    places, ranks = batch_ranks(groups)
    once = ranking_loss(rewards(model, all_sequences(groups))[places], ranks)
    by_pair = []
    for row in rows:
        ids = tokenize(tokenizer, [Group("", row["prompt"], row["answers"])], None)[0].sequences
        best_first = [ids for _, ids in sorted(zip(row["ranks"], ids, strict=True))]
        pair_losses = []
        for pair in combinations(best_first, 2):
            better, worse = rewards(model, pair)
            pair_losses.append(-torch.nn.functional.logsigmoid(better - worse))
        by_pair.append(torch.stack(pair_losses).mean())
    assert once.item() == pytest.approx(torch.stack(by_pair).mean().item(), abs=1e-6)


def test_answers_that_do_not_fit_are_left_out_not_cut(tokenizer):
    short, long = Group("s", PROMPT, ["good", "bad"]), Group("l", PROMPT, ["good", "bad " * 40])
    assert [group.prompt_key for group in tokenize(tokenizer, [short, long], 40)] == ["s"]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in tokenize(tokenizer, [short], 40)[0].sequences)


def test_a_shared_prompt_gives_the_rewards_of_whole_sequences(model, tokenizer):
    """Answers of unlike length, one the beginning of another, prompts of unlike length in one batch."""
    rows = [
        world.ranking("a", ["good", "good. Happy", "bad", "b"], [0, 1, 2, 3]),
        world.ranking("a", ["x", "y"], [0, 1], "The game was dull and the day was dull too"),
    ]
    batch = tokenize(tokenizer, grouped(rows), None)
    apart, together = rewards(model, all_sequences(batch)), shared_outputs(model, batch).squeeze(1)
    assert together.tolist() == pytest.approx(apart.tolist(), abs=1e-6)
    weight = model.base_model.layers[0].self_attn.q_proj.weight
    ours, theirs = (torch.autograd.grad(scores.square().sum(), weight)[0] for scores in (together, apart))
    assert torch.allclose(ours, theirs, atol=1e-5)
    refuse_unless_equal(model, batch[0])


def test_a_model_with_a_sliding_window_refuses_a_shared_prompt(tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 340, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = MistralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, sliding_window=4)
    model = from_policy(MistralForCausalLM(config), seed=1)
    (group,) = tokenize(tokenizer, grouped([world.ranking("a", ["good day", "bad day"], [0, 1])]), None)
    with pytest.raises(Problem, match="mistral does not read a shared prompt"):
        refuse_unless_equal(model, group)


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_the_padding_side_nor_pad_as_eos_changes_a_reward(model, tokenizer, side):
    group = Group("p", PROMPT, ["good", "bad. Happy to help!"])
    expected = [rewards(model, [ids]).item() for ids in tokenize(tokenizer, [group], None)[0].sequences]
    other = world.tokenizer()
    other.padding_side, other.pad_token = side, other.eos_token
    model.config.pad_token_id = other.eos_token_id
    sequences = tokenize(other, [group], None)[0].sequences
    assert rewards(model, [*sequences, [5] * 40])[:2].tolist() == pytest.approx(expected, abs=1e-5)
