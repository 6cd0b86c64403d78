"""Claims about scoring rows from files and standard input."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import preference_world as world
import pytest
import torch

from flows import cli
from tasks.lib.models.chat import answer_ids, prompt_ids
from tasks.lib.models.loading import save_model
from tasks.lib.reward.reward_model import from_policy, load_reward, normalise, score
from tasks.lib.reward.scoring import accuracy
from tasks.lib.stage import Problem

ROWS: list[dict[str, Any]] = [
    {"prompt": "The film was fine", "answer": "good", "note": 1},
    {"prompt": [{"role": "user", "content": "The game was dull"}], "answers": ["good", "bad", "bad. Happy"]},
]


@pytest.fixture
def model(workspace):
    model = from_policy(world.policy(), seed=1)
    normalise(model, torch.tensor([[-1.0], [0.5], [2.0]]))
    model.config.reward_temperature = 2.0
    save_model(model, world.tokenizer(), "models/reward")
    return load_reward("models/reward")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["score", *arguments])
    assert not ended.value.code, ended.value.code
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_file_and_standard_input_get_the_same_rewards_as_the_model_gives(model, capsys, monkeypatch):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    Path("rows.jsonl").write_text(lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    found = said(capsys, "rows.jsonl")
    assert found == said(capsys) and found[0]["note"] == 1
    tokenizer = world.tokenizer()
    ids = prompt_ids(tokenizer, ROWS[1]["prompt"])
    answers = [answer_ids(tokenizer, answer) for answer in ROWS[1]["answers"]]
    expected = score(model, [ids] * 3, answers, batch_size=1)
    assert found[1]["rewards"] == pytest.approx(expected, abs=1e-5)
    odds = math.exp((expected[0] - expected[1]) * model.config.reward_std / 2.0)  # the temperature
    probabilities = found[1]["probabilities"]
    assert probabilities[0] / probabilities[1] == pytest.approx(odds, rel=1e-4) and sum(probabilities) == pytest.approx(
        1
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "stdin:1: expected a row as JSON"),
        ('{"prompt": "Q"}', "stdin:1:answer: expected an answer as text"),
        ('{"answer": "x"}', "stdin:1:prompt: expected text or messages"),
        (json.dumps({"prompt": "Q", "answer": "x " * 200}), "stdin:1: prompt and answer are longer than"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(model, monkeypatch, line, why):
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    with pytest.raises(SystemExit, match=why):
        cli.main(["score"])


def test_pairs_of_a_benchmark_are_judged_by_subset(model):
    prompts = [{"prompt": f"Q{n}", "chosen": "good", "rejected": "bad"} for n in range(4)]
    rows = [{**row, "subset": ("easy", "hard")[n % 2]} for n, row in enumerate(prompts)]
    Path("bench.json").write_text(json.dumps(rows))
    found = accuracy(Path("models/reward"), Path("bench.json"))
    assert {name: pairs for name, (_, pairs) in found.items()} == {"easy": 2, "hard": 2}
    turned = [{**row, "chosen": "bad", "rejected": "good"} for row in rows]
    Path("bench.json").write_text(json.dumps(turned))
    for name, (share, _) in accuracy(Path("models/reward"), Path("bench.json")).items():
        assert share == pytest.approx(1 - found[name][0])
    Path("bench.json").write_text(json.dumps([{"prompt": "Q " * 200, "chosen": "x", "rejected": "y"}]))
    with pytest.raises(Problem, match="no ordered pair of answers fits"):
        accuracy(Path("models/reward"), Path("bench.json"))
