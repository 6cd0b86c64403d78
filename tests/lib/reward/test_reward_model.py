"""Claims about the reward model: where it reads, and what it stores."""

from __future__ import annotations

import json
import math

import preference_world as world
import pytest
import torch

from tasks.lib.models.loading import save_model
from tasks.lib.reward.reward_model import from_policy, load_reward, normalise, raw_outputs, raw_scores, rewards, score
from tasks.lib.stage import Problem


@pytest.fixture
def model():
    return from_policy(world.policy(), seed=1)


def test_the_head_starts_as_the_papers_say_and_the_body_as_the_policy(model):
    body = world.policy().base_model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in model.base_model.state_dict().items())
    assert model.score.weight.shape == (1, 32) and model.score.bias is None
    assert model.score.weight.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.4)


def test_a_reward_does_not_depend_on_who_shares_the_batch(model):
    sequences = [[5, 6, 7, 1], [5, 1], [8, 9, 10, 11, 12, 1]]
    alone = [rewards(model, [ids]).item() for ids in sequences]
    assert rewards(model, sequences).tolist() == pytest.approx(alone, abs=1e-6)
    assert raw_scores(model, sequences, batch_size=2) == pytest.approx(alone, abs=1e-6)


def test_the_last_token_is_found_by_length_where_pad_is_eos(model):
    model.config.pad_token_id = 1
    sequences = [[5, 6, 1], [5, 6, 7, 8, 1]]
    with torch.no_grad():
        states = [model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences]
        expected = [model.score(state).item() for state in states]
    assert rewards(model, sequences).tolist() == pytest.approx(expected, abs=1e-6)


def test_without_padding_it_is_transformers_own_forward(model):
    ids = torch.tensor([[5, 6, 7, 1]])
    assert rewards(model, ids.tolist()).item() == pytest.approx(model(ids).logits.item(), abs=1e-6)


def test_normalised_scores_have_mean_0_and_std_1_on_the_reference(model, tmp_path):
    prompts, answers = [[5, 6]] * 4, [[7, 1], [8, 1], [9, 10, 1], [11, 1]]
    normalise(model, raw_outputs(model, [p + a for p, a in zip(prompts, answers, strict=True)], batch_size=4))
    scores = torch.tensor(score(model, prompts, answers, batch_size=2))
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    save_model(model, world.tokenizer(), tmp_path / "reward")
    loaded = load_reward(tmp_path / "reward")
    assert score(loaded, prompts, answers, batch_size=4) == pytest.approx(scores.tolist(), abs=1e-6)


def test_constant_rewards_are_refused(model):
    with pytest.raises(Problem, match=r"gives every answer 0\.5"):
        normalise(model, torch.full((3, 1), 0.5))


def test_a_folder_that_is_no_reward_model_is_refused(model, tmp_path):
    with pytest.raises(Problem, match="does not exist"):
        load_reward(tmp_path / "nothing")
    world_policy = world.policy()
    save_model(world_policy, world.tokenizer(), tmp_path / "policy")
    with pytest.raises(Problem, match=r"not a reward model"):
        load_reward(tmp_path / "policy")
    normalise(model, torch.tensor([[0.0], [1.0]]))
    save_model(model, world.tokenizer(), tmp_path / "reward")
    config = json.loads((tmp_path / "reward/config.json").read_text())
    (tmp_path / "reward/config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "reward_mean"}))
    with pytest.raises(Problem, match="reward_mean"):
        load_reward(tmp_path / "reward")


def test_a_weight_that_is_not_finite_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    normalise(model, torch.tensor([[0.0], [1.0]]))
    save_model(model, world.tokenizer(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["score.weight"][0, 0] = math.nan
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problem, match=r"score\.weight holds NaN"):
        load_reward(tmp_path)
