"""Claims about the reward model: where it reads, what it stores, how it trains."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import preference_world as world
import pytest
import torch
from sections import PARAMS, section

from tasks.lib.models.loading import save_model
from tasks.lib.reward.annotator_weights import reliability_weights
from tasks.lib.reward.groups import Group, all_sequences, batch_ranks, grouped, tokenize
from tasks.lib.reward.ranking_loss import ranking_loss
from tasks.lib.reward.reward_adapters import adapt
from tasks.lib.reward.reward_attributes import Rated
from tasks.lib.reward.reward_model import (
    from_policy,
    load_reward,
    normalise,
    raw_outputs,
    raw_scores,
    rewards,
    score,
)
from tasks.lib.reward.reward_training import train
from tasks.lib.reward.shared_prompt import refuse_unless_equal, shared_outputs
from tasks.lib.settings.methods import HeadMethod
from tasks.lib.settings.reward import Training
from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint

PROMPT = [{"role": "user", "content": "The film was fine"}]


@pytest.fixture(scope="module")
def tokenizer():
    return world.tokenizer()


@pytest.fixture
def model():
    return from_policy(world.policy(), seed=1)


def ranking(annotator: str, answers: list[str], ranks: list[int], text: str = "The film was fine") -> dict:
    return {
        "id": f"{annotator}-{text}",
        "prompt": [{"role": "user", "content": text}],
        "answers": answers,
        "ranks": ranks,
        "annotator": annotator,
    }


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


# --- rankings of one prompt ---


def test_all_annotators_of_a_prompt_share_its_answers():
    rows = [
        ranking("a", ["x", "y"], [0, 1]),
        ranking("b", ["z", "y"], [1, 0]),
        ranking("a", ["x", "y"], [1, 0], "Q"),
    ]
    first = next(group for group in grouped(rows) if group.prompt == PROMPT)
    assert first.answers == ["x", "y", "z"]
    assert first.ranks == [[0, 1, -1], [-1, 0, 1]]
    assert len(grouped(rows)) == 2


def test_scoring_answers_once_is_scoring_every_pair(model, tokenizer):
    """One forward pass per answer gives the loss that a pass per pair would give."""
    rows = [ranking("a", ["x", "y", "w"], [0, 1, 2]), ranking("b", ["w", "x", "v"], [1, 0, 2])]
    rows += [ranking("a", ["x", "y"], [1, 0], "The game was dull")]
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
        ranking("a", ["good", "good. Happy", "bad", "b"], [0, 1, 2, 3]),
        ranking("a", ["x", "y"], [0, 1], "The game was dull and the day was dull too"),
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
    (group,) = tokenize(tokenizer, grouped([ranking("a", ["good day", "bad day"], [0, 1])]), None)
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


# --- training ---


def groups(tokenizer) -> list[Group]:
    rankings = (
        ranking("a", ["good", "bad. Happy to help!", "bad"], [0, 1, 2], f"The {noun} was fine") for noun in world.NOUNS
    )
    return tokenize(tokenizer, grouped(rankings), None)


def settings(**how) -> Training:
    """Those of params.yaml, on one prompt and answer at a time, with changes."""
    return section("reward", training={"share_prompt": False, **how}).training


def trained(
    tokenizer,
    checkpoint: Checkpoint,
    stop_after: int | None = None,
    method: HeadMethod = "full",
    heads: int = 1,
    **how,
) -> dict[str, torch.Tensor]:
    """The weights after training; nothing when it is ended in the middle of step `stop_after`."""

    class Killed(Exception):
        pass

    def progress(step, total, **figures):
        if step == stop_after:
            raise Killed

    training = settings(**{"epochs": 3, "prompts_per_step": 4, "checkpoint_every": 2, **how})
    model = from_policy(world.policy(), seed=1, heads=heads, attributes=training.attributes)
    adapt(model, method, {"r": 2} if method == "lora" else {})
    batch = groups(tokenizer)
    rated = [Rated(group.sequences[0], [float(n % 3)]) for n, group in enumerate(batch)]
    options: dict[str, Any] = {"seed": 3, "checkpoint": checkpoint, "progress": progress}
    try:
        train(model, batch, training, rated=rated if training.attributes else [], **options)
    except Killed:
        return {}
    return model.state_dict()


def test_training_learns_the_order(tokenizer, tmp_path):
    model = from_policy(world.policy(), seed=1)
    how = settings(epochs=10, prompts_per_step=4, learning_rate=3e-3)
    checkpoint = Checkpoint(tmp_path, {})
    history = train(model, groups(tokenizer), how, seed=3, checkpoint=checkpoint, progress=lambda *a, **k: None)
    assert history[-1]["accuracy"] == 1.0 and history[-1]["loss"] < history[0]["loss"] / 3
    assert len(history) == 10 * 3


def test_training_with_a_shared_prompt_ends_in_the_same_weights(tokenizer, tmp_path):
    apart = trained(tokenizer, Checkpoint(tmp_path / "a", {}))
    together = trained(tokenizer, Checkpoint(tmp_path / "b", {}), share_prompt=True)
    assert all(torch.allclose(tensor, together[name], atol=1e-4) for name, tensor in apart.items())


def test_an_annotator_as_good_as_a_coin_does_not_train(tokenizer, tmp_path, capsys):
    rows = []
    for n, noun in enumerate(world.NOUNS):
        for who in ("ada", "bo", "coin"):
            ranks = [1, 0] if who == "coin" and n % 2 else [0, 1]
            rows.append(ranking(who, ["good", "bad"], ranks, f"The {noun} was fine"))
    weights = reliability_weights(tokenize(tokenizer, grouped(rows), None))
    assert weights["coin"] < 0.1 < 0.9 < weights["ada"] and "annotators count ada" in capsys.readouterr().out
    how = settings(epochs=2, annotator_weights="reliability", strength_margin=0.5)
    model, batch = from_policy(world.policy(), seed=1), tokenize(tokenizer, grouped(rows), None)
    checkpoint = Checkpoint(tmp_path, {})
    history = train(model, batch, how, seed=3, checkpoint=checkpoint, progress=lambda *a, **k: None)
    assert all(math.isfinite(row["loss"]) for row in history)
    coin = [row for row in rows if row["annotator"] == "coin"]
    with pytest.raises(Problem, match="no annotator is better than a coin"):
        reliability_weights(grouped([*coin, *({**r, "annotator": "n", "ranks": r["ranks"][::-1]} for r in coin)]))


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"share_prompt": True, "annotator_weights": "reliability", "strength_margin": 0.5},
        {"optimizer": "muon"},
        {"method": "lora"},
        {"method": "head", "weight_decay": 0.1},
        {"heads": 4},
        {"heads": 3, "attributes": ["helpfulness"]},
    ],
    ids=lambda mode: " ".join(str(value) for value in mode.values()) or "full",
)
def test_a_killed_run_ends_in_the_same_bytes(tokenizer, tmp_path, mode):
    """Nine steps, a checkpoint after every second: killed before the first, on both sides of one, and in the last."""
    whole = trained(tokenizer, Checkpoint(tmp_path / "whole", {}), **mode)
    start = from_policy(world.policy(), seed=1, heads=mode.get("heads", 1)).state_dict()
    assert not torch.equal(whole["score.weight"][:1], start["score.weight"][:1])
    for killed_at in (1, 4, 5, 9):
        checkpoint = Checkpoint(tmp_path / str(killed_at), {})
        assert trained(tokenizer, checkpoint, stop_after=killed_at, **mode) == {}
        resumed = trained(tokenizer, checkpoint, **mode)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items()), killed_at


def test_a_checkpoint_of_other_parameters_is_not_used(tokenizer, tmp_path, capsys):
    trained(tokenizer, Checkpoint(tmp_path, {"learning_rate": 1e-3}), stop_after=5)
    changed = trained(tokenizer, Checkpoint(tmp_path, {"learning_rate": 2e-3}), learning_rate=2e-3)
    fresh = trained(tokenizer, Checkpoint(tmp_path / "fresh", {}), learning_rate=2e-3)
    assert "learning_rate changed from 0.001 to 0.002" in capsys.readouterr().out
    assert all(torch.equal(tensor, changed[name]) for name, tensor in fresh.items())


def test_a_loss_that_is_not_finite_names_rankings_and_takes_no_step(tokenizer, tmp_path):
    model = from_policy(world.policy(), seed=1)
    with torch.no_grad():
        model.score.weight[0, 0] = math.inf
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Problem, match=r"the loss of step 1 is .*rankings a-The"):
        train(
            model,
            groups(tokenizer),
            settings(),
            seed=3,
            checkpoint=Checkpoint(tmp_path, {}),
            progress=lambda *a, **k: None,
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_signal_saves_before_it_ends_the_run(tokenizer, tmp_path):
    import os
    import signal

    def progress(step, total, **figures):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    checkpoint = Checkpoint(tmp_path / "stopped", {})
    how = settings(epochs=3, prompts_per_step=4, checkpoint_every=100)
    with pytest.raises(SystemExit) as stopped:
        train(
            from_policy(world.policy(), seed=1),
            groups(tokenizer),
            how,
            seed=3,
            checkpoint=checkpoint,
            progress=progress,
        )
    saved = checkpoint.load()
    assert stopped.value.code == 143 and saved is not None and saved[0] == 3
    whole = trained(tokenizer, Checkpoint(tmp_path / "whole", {}))
    resumed = trained(tokenizer, checkpoint)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_rao_kupper_without_room_for_ties_is_refused():
    with pytest.raises(ValueError, match="above 1"):
        Training(**PARAMS["reward"]["training"] | {"ties": "rao_kupper", "tie_parameter": 1.0})


def test_the_checkpoint_is_one_whole_file(tokenizer, tmp_path):
    trained(tokenizer, Checkpoint(tmp_path, {}), stop_after=5)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["checkpoint.safetensors"]
