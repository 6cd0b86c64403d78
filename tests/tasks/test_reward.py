"""Claims about the reward stage, on a tiny world whose panel likes right answers with a closing."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import preference_world as world
import pytest
import torch
from sections import section

from tasks import annotate, preferences, reward
from tasks.lib.models.loading import load_policy
from tasks.lib.reward.accuracy import OrderedPair
from tasks.lib.reward.reward_model import load_reward
from tasks.lib.reward.scoring import scored
from tasks.lib.stage import Problem, Stage, read_params

HOW = {"epochs": 8, "prompts_per_step": 4, "learning_rate": 3e-3, "checkpoint_every": 2, "share_prompt": False}
OUTPUTS = [
    "models/reward/model.safetensors",
    "models/reward/config.json",
    "reports/reward.json",
    "reports/plots/reward.png",
    "reports/plots/reward_reliability.csv",
]


def run(**how) -> dict:
    reward.run(section("reward", training={**HOW, **how}), Stage("reward", seed=1))
    return json.loads(Path("reports/reward.json").read_text())


def import_rankings(benchmarks: str) -> None:
    params = {"annotators": {"1": "ada"}, "heldout_share": 0.25, "benchmarks": benchmarks}
    preferences.run(section("preferences", **params), Stage("preferences"))


@pytest.fixture
def annotated(workspace):
    world.write_model()
    world.write_instructions()
    world.write_candidates()
    world.write_panel()
    annotate.run(section("annotate", careless=0), Stage("annotate"))
    import_rankings("data/raw")
    return workspace


def test_the_reward_model_learns_what_the_panel_likes(annotated, capsys):
    figures = run()
    assert figures["pair_accuracy"] > 0.8 and figures["pair_accuracy_low"] > 0.6
    assert figures["noise_ceiling"] > 0.9
    assert {"accuracy_ada", "accuracy_2", "accuracy_majority", "accuracy_longer", "ece"} <= figures.keys()
    assert {"accuracy_source_simulated_panel", "ece_scaled", "best_possible", "score_p50"} <= figures.keys()
    assert figures["gain_over_bag_of_words"] == pytest.approx(
        figures["pair_accuracy"] - figures["accuracy_bag_of_words"], abs=1e-5
    )
    stored = json.loads(Path("models/reward/config.json").read_text())["reward_temperature"]
    assert stored == pytest.approx(figures["temperature"], rel=1e-5)
    assert "the words of the answer alone" in capsys.readouterr().out
    assert all(Path(output).exists() for output in OUTPUTS)
    assert not Stage("reward").checkpoints.exists()


@pytest.mark.parametrize("method", ["lora", "head"])
def test_few_weights_learn_too_and_end_as_an_ordinary_model(annotated, method, monkeypatch):
    """Low-rank updates are saved alone; what is loaded has the bits of the model that was measured."""
    measured = []
    save = reward.save_adapter

    def watched(*given):
        measured.append(given[1].state_dict())
        save(*given)

    monkeypatch.setattr(reward, "save_adapter", watched)
    before = load_policy("models/sft").base_model.state_dict()
    how = {**HOW, "epochs": 4, "learning_rate": 1e-2}
    params = section("reward", method=method, training=how, lora={"r": 4} if method == "lora" else {})
    reward.run(params, Stage("reward", seed=1))
    assert json.loads(Path("reports/reward.json").read_text())["pair_accuracy"] > 0.55
    assert Path("models/reward/model.safetensors").exists() == (method == "head")
    for trained in measured:
        loaded = load_reward("models/reward").state_dict()
        assert loaded.keys() == trained.keys() and all(torch.equal(loaded[name], trained[name]) for name in trained)
    after = load_reward("models/reward").base_model.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert bool(moved) == (method == "lora") and all("proj" in name for name in moved)


def test_an_ensemble_says_how_far_its_heads_disagree(annotated):
    reward.run(section("reward", heads=4, training={**HOW, "share_prompt": True}), Stage("reward", seed=1))
    figures = json.loads(Path("reports/reward.json").read_text())
    assert figures["pair_accuracy"] > 0.6 and 0 < figures["disagreement"] < 0.5
    assert {"accuracy_agreed", "accuracy_head_mean", "contested_share"} <= figures.keys()
    model = load_reward("models/reward")
    assert model.score.out_features == model.config.reward_heads == len(model.config.reward_head_means) == 4
    right, wrong = (["good", "bad"], ["bad", "good. Happy to help!"])
    rows = [{"prompt": "The song was fine", "answers": answers} for answers in (right, wrong)]
    rows += [{"prompt": "The song was fine", "answer": "good"}]
    first, _, alone = scored(Path("models/reward"), [("row", row) for row in rows])
    assert 0 < first["disagreement"] < 0.5 and alone["disagreement"] > 0
    assert alone["reward"] == pytest.approx(first["rewards"][0], abs=1e-5)


def test_every_benchmark_is_reported_by_subset(annotated, capsys):
    Path("bench").mkdir()
    pairs = [
        {
            "prompt": f"The {noun} was fine",
            "chosen": "good",
            "rejected": "bad",
            "subset": ("easy", "odd one")[n % 2],
        }
        for n, noun in enumerate(world.NOUNS)
    ]
    Path("bench/pairs.json").write_text(json.dumps(pairs))
    Path("bench/plain.jsonl").write_text('{"prompt": "The day was dull", "chosen": "bad", "rejected": "good"}')
    Path("bench/README.md").write_text("not a benchmark")
    too_long = {"prompt": "The day was dull " * 40, "chosen": "bad", "rejected": "good"}
    Path("bench/long.json").write_text(json.dumps([too_long]))
    import_rankings("bench")
    reward.run(section("reward", training={**HOW, "epochs": 1}, require_above_chance=False), Stage("reward", seed=1))
    said = capsys.readouterr().out
    assert "bench/pairs.json: 7 of 12 prompts are also in training" in said
    assert "long.parquet: left out, no ordered pair of answers fits the model" in said
    figures = json.loads(Path("reports/reward.json").read_text())
    found = {name: value for name, value in figures.items() if name.startswith("benchmark_")}
    names = ("pairs", "pairs_easy", "pairs_odd_one", "plain")
    assert found.keys() == {f"benchmark_{name}" for name in names}
    halves = found["benchmark_pairs_easy"] + found["benchmark_pairs_odd_one"]
    assert found["benchmark_pairs"] == pytest.approx(halves / 2, abs=1e-5)


def test_settings_of_lora_without_lora_or_misspelt_are_refused(annotated):
    for method, lora, why in (
        ("full", {"r": 4}, "reward.method is full"),
        ("lora", {"rank": 4}, "reward.lora.rank"),
    ):
        with pytest.raises(Problem, match=why):
            reward.run(section("reward", method=method, lora=lora), Stage("reward", seed=1))


def test_a_model_no_better_than_a_coin_is_not_written(annotated, monkeypatch):
    monkeypatch.setattr(OrderedPair, "hit", property(lambda self: 0.5))
    with pytest.raises(Problem, match=r"0\.500 of \d+ cases, no better than a coin"):
        run(epochs=1)
    assert not Path("models/reward").exists() and not Path("reports/reward.json").exists()
    reward.run(section("reward", training={**HOW, "epochs": 1}, require_above_chance=False), Stage("reward"))
    assert Path("models/reward").exists()


def test_a_run_killed_with_9_goes_on_and_ends_in_the_same_bytes(annotated, capsys):
    run()
    whole = [Path(output).read_bytes() for output in OUTPUTS]
    checkpoint = Stage("reward").checkpoints / "checkpoint.safetensors"
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    while not checkpoint.exists() and child.is_alive():
        time.sleep(0.002)  # leaves the core to the child
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and checkpoint.exists()
    run()
    assert "continuing after step" in capsys.readouterr().out
    assert [Path(output).read_bytes() for output in OUTPUTS] == whole


def test_a_misspelt_parameter_is_named(workspace):
    Path("params.yaml").write_text('{"seed": 1, "threads": 1, "reward": {"training": {"epoch": 1}}}')
    with pytest.raises(Problem, match=r"reward\.training\.epoch is not a key of stage reward; did you mean epochs"):
        read_params("reward", reward.Params)
