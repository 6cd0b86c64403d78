"""Claims about ratings of single answers by attribute: how they are read, and how a reward model learns them."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import preference_world as world
import pytest
import torch
from sections import section

from tasks import annotate, preferences, reward
from tasks.lib.data.rows import RATING, read_parquet, write_parquet
from tasks.lib.importers.attribute_ratings import has_ratings, ratings
from tasks.lib.reward.reward_attributes import (
    attribute_figures,
    attribute_loss,
    rated_answers,
    rated_batches,
    set_scales,
)
from tasks.lib.reward.reward_model import from_policy
from tasks.lib.reward.scoring import scored
from tasks.lib.stage import Problem, Stage

HELPSTEER = [
    {"prompt": "Q", "response": "yes", "helpfulness": 4, "correctness": "3", "note": "x"},
    {"prompt": "Q", "response": "no", "helpfulness": 0, "correctness": None},
]


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, *names: str) -> list[tuple]:
    return [(row["answer"], row["attribute"], row["value"]) for row in ratings(path, names, "CC0-1.0")]


def test_rows_of_three_kinds_are_read(tmp_path):
    path = written(tmp_path / "h.jsonl", HELPSTEER)
    expected = [("yes", "helpfulness", 4.0), ("yes", "correctness", 3.0), ("no", "helpfulness", 0.0)]
    assert read(path, "helpfulness", "correctness") == expected
    completion = {
        "response": "yes",
        "annotations": {"honesty": {"Rating": "5"}, "truthfulness": {"Rating": "N/A"}},
    }
    path = written(tmp_path / "u.jsonl", [{"instruction": "Q", "completions": [completion]}])
    assert read(path, "honesty", "truthfulness") == [("yes", "honesty", 5.0)]
    path = written(tmp_path / "k.jsonl", [{"prompt": "Q", "completion": "yes", "label": False}])
    assert read(path, "label") == [("yes", "label", 0.0)]
    assert has_ratings(path, ["label"]) and not has_ratings(path, ["honesty"])


def test_a_value_that_is_no_number_is_named(tmp_path):
    path = written(tmp_path / "h.jsonl", [{"prompt": "Q", "response": "yes", "helpfulness": "high"}])
    with pytest.raises(Problem, match=r"h.jsonl:1:helpfulness: expected a number, found 'high'"):
        read(path, "helpfulness")


def test_the_loss_is_the_squared_error_in_standard_deviations_of_what_was_rated():
    """Values 1 and 3: mean 2, deviation 1. An output of 0 says the mean: errors of 1 and 1, and none of honesty, which
    one answer alone was rated by."""
    model = from_policy(world.policy(), seed=1, attributes=["helpfulness", "honesty"])
    with torch.no_grad():
        model.score.weight.zero_()
    rows = [
        {"prompt": [{"role": "user", "content": "Q"}], "answer": answer, "attribute": name, "value": value}
        for answer, name, value in (
            ("a", "helpfulness", 1.0),
            ("b", "helpfulness", 2.5),
            ("b", "helpfulness", 3.5),
            ("b", "honesty", 2.0),
        )
    ]
    rated = rated_answers(rows, ["helpfulness", "honesty"], world.tokenizer(), None)
    assert [answer.values[0] for answer in rated] == [1.0, 3.0]  # two annotators of one answer: their mean
    assert math.isnan(rated[0].values[1])
    set_scales(model, rated * 5)
    batches = rated_batches(rated * 5, epochs=2, steps=4, seed=1)
    assert [len(batch) for batch in batches] == [5] * 4
    assert model.config.reward_attribute_scales[0] == [2.0, 1.0]
    assert attribute_loss(model, rated, 3).item() == pytest.approx(2 / 3)


def test_the_figures_compare_with_saying_the_mean():
    said, given = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[1.0], [3.0], [math.nan]])
    assert attribute_figures(["x"], said, given) == {
        "attribute_x_rmse": pytest.approx(math.sqrt(0.5)),
        "attribute_x_spread": 1.0,
        "attribute_x_correlation": pytest.approx(1.0),
    }


def test_a_reward_model_learns_attributes_beside_the_rankings(workspace):
    """Correct answers have a correctness of 4, others of 0; the closing is worth nothing to it."""
    world.write_model()
    world.write_instructions()
    world.write_candidates()
    world.write_panel()
    Path("data/raw/benchmarks").mkdir()
    annotate.run(section("annotate", careless=0), Stage("annotate"))
    rows = []
    for row, content, closing in product(world.instructions(), ("good", "bad"), ("", world.CLOSING)):
        correctness = 4 * (content == row["label"])
        rows.append({"prompt": row["messages"], "response": content + closing, "correctness": correctness})
    written(Path("data/annotations/rated.jsonl"), rows)
    preferences.run(
        section("preferences", annotators={}, heldout_share=0.25, attributes=["correctness"]), Stage("preferences")
    )
    train = read_parquet(Path("data/preferences/ratings_train.parquet"))
    heldout = read_parquet(Path("data/preferences/ratings_heldout.parquet"))
    assert len(train) + len(heldout) == len(rows) and {row["value"] for row in train} == {0.0, 4.0}
    ranked = {row["prompt"][0]["content"] for row in read_parquet(Path("data/preferences/train.parquet"))}
    assert not ranked & {row["prompt"][0]["content"] for row in heldout}
    how = {
        "epochs": 20,
        "prompts_per_step": 4,
        "learning_rate": 3e-3,
        "attributes": ["correctness"],
        "share_prompt": False,
    }
    reward.run(section("reward", training=how), Stage("reward", seed=1))
    figures = json.loads(Path("reports/reward.json").read_text())
    assert figures["pair_accuracy"] > 0.6 and figures["attribute_correctness_correlation"] > 0.5
    assert figures["attribute_correctness_rmse"] < figures["attribute_correctness_spread"]
    row = {"prompt": "The song was fine", "answers": ["good", "bad"]}
    (scores,) = scored(Path("models/reward"), [("row", row)])
    assert scores["correctness"][0] > scores["correctness"][1] and "disagreement" not in scores
    asked = section("reward", training=how)
    before = reward._fingerprint(asked, 1)
    write_parquet(Path("data/preferences/ratings_train.parquet"), train[1:], RATING)
    assert reward._fingerprint(asked, 1) != before  # a checkpoint of other ratings is of another run
    with pytest.raises(Problem, match=r"ratings_train.parquet has no answer of 96 tokens rated by honesty"):
        reward.run(section("reward", training={**how, "attributes": ["honesty"]}), Stage("reward"))


def test_an_attribute_that_no_row_has_is_named(workspace):
    Path("data/annotations").mkdir(parents=True)
    rows = [{"prompt": f"Q{n}", "answers": ["x", "y"], "ranks": [0, 1]} for n in range(30)]
    written(Path("data/annotations/ranks.jsonl"), rows)
    with pytest.raises(Problem, match=r"no row of data/annotations rates an answer by honesty"):
        preferences.run(section("preferences", attributes=["honesty"]), Stage("preferences"))
