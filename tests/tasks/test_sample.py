"""Claims about sampling candidates."""

from __future__ import annotations

import json
from pathlib import Path

import preference_world as world
import pytest
import torch
from sections import section

from tasks import sample
from tasks.lib.data.rows import read_parquet
from tasks.lib.importers.rankings import collapse_whitespace
from tasks.lib.models.loading import save_model
from tasks.lib.reward.ensemble import disagreements, load_ensemble
from tasks.lib.reward.reward_model import from_policy, normalise
from tasks.lib.stage import Problem, Stage

FILES = [
    "data/candidates/candidates.parquet",
    "data/candidates/labelstudio_tasks.json",
    "reports/sample.json",
]


def run(**params) -> list[bytes]:
    sample.run(
        section("sample", **{"prompts": 6, "max_new_tokens": 2, "oversample": 8, "temperatures": [1.0], **params}),
        Stage("sample", seed=1),
    )
    return [Path(file).read_bytes() for file in FILES]


@pytest.fixture
def model(workspace):
    world.write_model()
    world.write_instructions()


def test_candidates_are_different_answers_to_curated_prompts(model):
    first = run()
    rows = read_parquet(Path(FILES[0]))
    prompts = {row["id"]: row["messages"] for row in world.instructions()}
    assert len(rows) == 6
    for row in rows:
        assert row["prompt"] == prompts[row["instruction"]]
        assert 2 <= len({collapse_whitespace(answer) for answer in row["answers"]}) == len(row["answers"]) <= 4
        assert all(answer.strip() for answer in row["answers"])
    assert run() == first  # the same inputs and parameters, the same bytes
    assert run(temperatures=[0.5])[0] != first[0]


def test_the_tasks_for_label_studio_show_answers_in_a_shuffled_order(model):
    run()
    rows = {row["id"]: row for row in read_parquet(Path(FILES[0]))}
    tasks = [task["data"] for task in json.loads(Path(FILES[1]).read_text())]
    orders = set()
    for task in tasks:
        row, shown = rows[task["prompt_id"]], [item["body"] for item in task["responses"]]
        assert sorted(shown) == sorted(row["answers"])
        assert [row["answers"][int(item["id"].split("-")[1])] for item in task["responses"]] == shown
        orders.add(tuple(row["answers"].index(answer) for answer in shown))
    assert len(orders) > 1
    config = Path("data/candidates/labelstudio_config.xml").read_text()
    assert config.count("<Bucket") == 4 and "$responses" in config


def test_answers_that_ended_come_before_those_that_were_cut():
    ended = ["a", " a ", "", "b", "\0x", "\ufffd"]
    draws = [sample.Draw("cut", ended=False), *(sample.Draw(text, ended=True) for text in ended)]
    assert sample._different(draws, 2) == ["a", "b"]
    assert sample._different(draws, 4) == ["a", "b", "cut"]


def test_a_model_that_always_says_the_same_is_a_problem(model, monkeypatch):
    monkeypatch.setattr(sample, "generate", lambda model, prompts, **_: [[8, 1] for _ in prompts])
    with pytest.raises(Problem, match=r"the same answer every time.*sample\.temperature"):
        run()
    assert not Path(FILES[0]).exists()


def test_a_missing_model_is_said_by_name(workspace):
    with pytest.raises(Problem, match="models/sft does not exist"):
        run()


def test_an_ensemble_chooses_the_prompts_that_its_heads_disagree_about(model):
    ensemble = from_policy(world.policy(seed=1), seed=1, heads=3)
    normalise(ensemble, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 3.0]]))
    save_model(ensemble, world.tokenizer(), "models/earlier")
    everything = {row["id"]: row for row in pool_of(24)}
    run(choice="disagreement", reward="models/earlier", pool=4)
    chosen = read_parquet(Path(FILES[0]))
    assert len(chosen) == 6 and {row["id"] for row in chosen} <= everything.keys()
    rows = list(everything.values())
    earlier = load_ensemble(Path("models/earlier"))
    apart = {rows[place]["id"]: d for place, d in disagreements(*earlier, rows, batch_size=8).items()}
    asked = [apart.pop(row["id"]) for row in chosen]
    assert min(asked) >= max(apart.values())
    figures = json.loads(Path(FILES[2]).read_text())
    assert figures["disagreement_chosen"] > figures["disagreement_pool"] > 0
    assert figures["pool"] == len(everything)


def pool_of(prompts: int) -> list[dict]:
    """The candidates that the ensemble may choose from: what a larger choice by hash gives."""
    run(prompts=prompts)
    return read_parquet(Path(FILES[0]))


def test_a_reward_model_of_one_head_cannot_choose(model):
    single = from_policy(world.policy(seed=1), seed=1)
    normalise(single, torch.tensor([[0.0], [1.0]]))
    save_model(single, world.tokenizer(), "models/earlier")
    with pytest.raises(Problem, match=r"models/earlier: the reward model has one head"):
        run(choice="disagreement", reward="models/earlier")
