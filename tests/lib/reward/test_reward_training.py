"""Claims about how a reward model learns rankings, and goes on after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import preference_world as world
import pytest
import torch
from sections import PARAMS, section

from tasks.lib.reward.annotator_weights import reliability_weights
from tasks.lib.reward.groups import Group, grouped, tokenize
from tasks.lib.reward.reward_adapters import adapt
from tasks.lib.reward.reward_attributes import Rated
from tasks.lib.reward.reward_model import from_policy
from tasks.lib.reward.reward_training import backward_of_step, passes_of, train
from tasks.lib.settings.methods import HeadMethod
from tasks.lib.settings.reward import Training
from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    return world.tokenizer()


def groups(tokenizer) -> list[Group]:
    rankings = (
        world.ranking("a", ["good", "bad. Happy to help!", "bad"], [0, 1, 2], f"The {noun} was fine")
        for noun in world.NOUNS
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


def test_equal_rewards_order_a_pair_half_right_as_in_the_report(tokenizer):
    batch = tokenize(tokenizer, grouped([world.ranking("ada", ["good", "bad"], [0, 1], "The tea was fine")]), None)
    model = from_policy(world.policy(), seed=1)
    torch.nn.init.zeros_(model.score.weight)
    _, figures = backward_of_step(model, batch, [], settings(), None, seed=3)
    assert figures["accuracy"] == 0.5


@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_passes_of_few_tokens_add_up_to_the_gradient_of_one_pass(tokenizer, share_prompt, heads):
    """Prompts of several lengths, annotators of several weights, ties and answers without a rank."""
    rows = []
    for n, noun in enumerate(world.NOUNS):
        answers = ["good", "bad. Happy to help!", "bad", "fine"][: 2 + n % 3]
        prompt = f"The {noun} was fine. " * (1 + n % 4)
        rows.append(world.ranking("ada", answers, [*range(len(answers))], prompt))
        rows.append(world.ranking("bo", answers[:2], [0, n % 2], prompt))
    batch = tokenize(tokenizer, grouped(rows), None)
    rated = [Rated(group.sequences[0], [float(n % 3)]) for n, group in enumerate(batch)]
    found = []
    for tokens in (None, 100):
        how = settings(share_prompt=share_prompt, tokens_per_pass=tokens, attributes=["helpfulness"])
        model = from_policy(world.policy(), seed=1, heads=heads, attributes=["helpfulness"])
        model.config.reward_attribute_scales = [[1.0, 1.0]]
        loss, figures = backward_of_step(model, batch, rated, how, {"ada": 0.9, "bo": 0.4}, seed=3)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append((loss, figures["accuracy"], gradient))
    assert len(passes_of(batch, share_prompt, 100)) > 3
    (loss, accuracy, gradient), (loss_in_parts, accuracy_in_parts, gradient_in_parts) = found
    assert loss_in_parts.item() == pytest.approx(loss.item(), rel=1e-6) and accuracy_in_parts == accuracy
    assert (gradient_in_parts - gradient).abs().max().item() < 2e-7 * max(1.0, gradient.abs().max().item())


def test_an_annotator_as_good_as_a_coin_does_not_train(tokenizer, tmp_path, capsys):
    rows = []
    for n, noun in enumerate(world.NOUNS):
        for who in ("ada", "bo", "coin"):
            ranks = [1, 0] if who == "coin" and n % 2 else [0, 1]
            rows.append(world.ranking(who, ["good", "bad"], ranks, f"The {noun} was fine"))
    weights = reliability_weights(tokenize(tokenizer, grouped(rows), None))
    assert weights["coin"] < 0.1 < 0.9 < weights["ada"] and "weights of annotators: ada" in capsys.readouterr().out
    how = settings(epochs=2, annotator_weights="reliability", strength_margin=0.5)
    model, batch = from_policy(world.policy(), seed=1), tokenize(tokenizer, grouped(rows), None)
    checkpoint = Checkpoint(tmp_path, {})
    history = train(model, batch, how, seed=3, checkpoint=checkpoint, progress=lambda *a, **k: None)
    assert all(math.isfinite(row["loss"]) for row in history)
    coin = [row for row in rows if row["annotator"] == "coin"]
    with pytest.raises(Problem, match="no annotator is better than a coin"):
        reliability_weights(grouped([*coin, *({**r, "annotator": "n", "ranks": r["ranks"][::-1]} for r in coin)]))


def test_an_annotator_who_has_only_ties_has_no_weight(tokenizer):
    rows = [world.ranking(who, ["good", "bad"], [0, 1]) for who in ("ada", "bo")]
    rows += [world.ranking("tie", ["good", "bad"], [0, 0])]
    assert reliability_weights(tokenize(tokenizer, grouped(rows), None)).keys() == {"ada", "bo"}


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
