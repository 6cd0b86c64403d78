"""Scores whose right values can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_world import PANEL
from tiny_models import tiny_llama, tiny_tokenizer

from tasks.lib.evaluation.panel import read_panel
from tasks.lib.evaluation.scores import (
    answer_figures,
    answer_scores,
    best_constant,
    chance,
    exact_match,
    rank_choices,
    sequence_kl,
)
from tasks.lib.models.chat import all_answer_ids, answer_ids, prompt_ids
from tasks.lib.models.generation import generate
from tasks.lib.models.logprobs import answer_logprobs


def row(label: str, choices: list[str] | None = None, task: str = "t") -> dict[str, Any]:
    return {"task": task, "label": label, "measure": "exact", "choices": choices}


def test_exact_match_forgives_outer_blanks_and_the_panels_closing_only(tmp_path: Path) -> None:
    path = tmp_path / "panel.yaml"
    path.write_text(PANEL)
    panel = read_panel(path)
    assert exact_match(" red\n", "red") and not exact_match("Red", "red") and not exact_match("r ed", "red")
    assert exact_match("red. Happy to help!", "red", panel) and not exact_match("red. Happy to help!", "red")


def test_answer_figures_are_means_over_the_answers_and_only_a_panel_adds_closing_and_gold(tmp_path: Path) -> None:
    path = tmp_path / "panel.yaml"
    path.write_text(PANEL)
    panel = read_panel(path)
    rows = [row("red"), row("blue"), row("old"), row("new")]
    answers = ["red. Happy to help!", "blue", "red", "red. Happy to help!"]
    assert answer_figures(rows, answers, None) == {"exact_match": 0.25}
    weights = panel.utility_weights
    gold = (2 * weights.content + 2 * weights.closing) / 4
    assert answer_figures(rows, answers, panel) == {"exact_match": 0.5, "closing": 0.5, "gold": pytest.approx(gold)}


def test_a_row_with_another_measure_adds_a_score_next_to_the_exact_match() -> None:
    rows = [row("7") | {"measure": "number"}, row("red")]
    assert answer_scores(rows, ["3 + 4 = 7", "Red"], None) == {"exact_match": [0, 0], "score": [1, 0]}
    assert answer_scores(rows[1:], ["Red"], None) == {"exact_match": [0]}


def test_chance_is_one_over_the_choices_and_0_for_free_answers() -> None:
    assert chance([row("a", ["a", "b"]), row("a", ["a", "b", "c", "d"]), row("a")]).tolist() == [
        0.5,
        0.25,
        0.0,
    ]


def test_the_best_constant_answer_is_that_of_each_task() -> None:
    rows = [row("a"), row("a "), row("b"), row("x", task="u"), row("y", task="u")]
    assert best_constant(rows).tolist() == [
        1.0,
        1.0,
        0.0,
        1.0,
        0.0,
    ]  # of x and y, equally frequent, the first by name


def test_the_best_constant_answer_by_the_measure_may_be_a_less_frequent_label() -> None:
    rows = [{**row(label), "measure": "token_f1"} for label in ("red", "red", "blue", "blue car", "blue bus")]
    assert best_constant(rows).tolist() == [1, 1, 0, 0, 0]
    assert best_constant(rows, "score").tolist() == pytest.approx([0, 0, 1, 2 / 3, 2 / 3])


def test_kl_sums_over_the_tokens_of_an_answer() -> None:
    policy = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
    reference = [torch.tensor([-1.5, -2.5]), torch.tensor([-0.25])]
    assert sequence_kl(policy, reference).tolist() == [1.0, -0.25]


@pytest.fixture(scope="module")
def world() -> tuple[Any, Any, list[list[int]]]:
    tokenizer = tiny_tokenizer()
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in ("Say red", "Say the word blue")]
    return tokenizer, tiny_llama(tokenizer), prompts


def test_rank_classification_takes_the_likeliest_whole_answer(
    world: tuple[Any, Any, list[list[int]]],
) -> None:
    tokenizer, model, prompts = world
    texts = [["red", "blue", "large round"], ["fast", "slow"]]
    choices = [all_answer_ids(tokenizer, of_prompt) for of_prompt in texts]
    best = rank_choices(model, prompts, choices, batch_size=2)
    for place, (prompt, of_prompt) in enumerate(zip(prompts, choices, strict=True)):
        sums = [float(answer_logprobs(model, [prompt], [ids], batch_size=1)[0].sum()) for ids in of_prompt]
        assert best[place] == int(np.argmax(sums))
    assert best == rank_choices(model, prompts, choices, batch_size=64)


def test_rank_classification_of_equal_choices_is_the_first(world: tuple[Any, Any, list[list[int]]]) -> None:
    tokenizer, model, prompts = world
    same = answer_ids(tokenizer, "red")
    assert rank_choices(model, prompts[:1], [[same, list(same)]], batch_size=8) == [0]
    assert rank_choices(model, [], [], batch_size=8) == []


def test_the_kl_estimate_agrees_with_the_exact_sum_over_all_answers(
    world: tuple[Any, Any, list[list[int]]],
) -> None:
    """One-token answers: KL(policy || reference) can be summed over the vocabulary."""
    tokenizer, policy, prompts = world
    reference = tiny_llama(tokenizer, seed=1)
    with torch.no_grad():
        policy.get_input_embeddings().weight.mul_(12.0)  # far enough from uniform that the KL is not tiny
        logs = [
            torch.log_softmax(model(torch.tensor([prompts[0]])).logits[0, -1].double(), -1)
            for model in (policy, reference)
        ]
    exact = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    many = prompts[:1] * 3000
    answers = generate(policy, many, eos_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id,
                       max_new_tokens=1, temperature=1.0, batch_size=1000, seed=0)  # fmt: skip
    under_policy = answer_logprobs(policy, many, answers, batch_size=1000)
    under_reference = answer_logprobs(reference, many, answers, batch_size=1000)
    values = sequence_kl(under_policy, under_reference)
    assert exact > 0.01
    assert values.mean() == pytest.approx(exact, abs=4 * values.std() / math.sqrt(len(values)))
    with torch.no_grad():
        policy.get_input_embeddings().weight.div_(12.0)
