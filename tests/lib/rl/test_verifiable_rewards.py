"""Rewards that a row, a pattern or a function of the workspace decides, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from tasks.lib.rl.batch import Batch, Prompt
from tasks.lib.rl.verifiable_rewards import exact, function, matching, verifiable_reward
from tasks.lib.stage import Problem

ROWS: list[Any] = [
    {
        "label": "7",
        "answer": "7, of course",
        "measure": "exact",
        "choices": None,
        "messages": [{"role": "user", "content": "3 + 4?"}],
    },
    {
        "label": "red",
        "answer": "red",
        "measure": "exact",
        "choices": None,
        "messages": [{"role": "user", "content": "What colour?"}],
    },
]


def test_exact_match_takes_the_label_and_the_written_answer() -> None:
    assert exact(["7, of course", "Red"], ROWS) == [1, 0]
    assert exact(["7", "red"], ROWS) == [1, 1]


def test_exact_match_is_what_the_task_of_the_row_has_as_its_measure() -> None:
    assert exact(["it is 7", "it is 8"], [ROWS[0] | {"measure": "number"}] * 2) == [1, 0]


def test_a_pattern_is_found_and_its_label_group_must_be_right() -> None:
    assert matching(r"\d")(["it is 8", "red"], ROWS) == [1, 0]
    assert matching(r"is (?P<label>\w+)$")(["it is 7", "it is blue"], ROWS) == [1, 0]


def test_a_function_of_the_workspace_sees_messages_texts_and_rows(workspace: Path) -> None:
    Path("mine").mkdir()
    Path("mine/weights.py").write_text("WEIGHT = 2")
    Path("mine/short.py").write_text(
        "from weights import WEIGHT\n"
        "def reward(prompts, answers, rows):\n"
        "    return [WEIGHT * len(p[0]['content']) + len(a) + (a == r['label'])\n"
        "            for p, a, r in zip(prompts, answers, rows)]\n"
    )
    assert function(Path("mine"), "short:reward")(["7", "blue"], ROWS) == [2 * 6 + 1 + 1, 2 * 12 + 4]


def test_answers_are_texts_without_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = [*tokenizer.encode("red"), tokenizer.eos_token_id]
    batch = Batch([Prompt("1", [4], ROWS[1])], [ids], batch_size=1)
    assert verifiable_reward("exact_match", Path("."), tokenizer)(batch) == [1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def reward(p, a, r):\n    return [1 / 0]", r"short\.py:2: reward: ZeroDivisionError"),
        ("def reward(p, a, r): return [1]", "gave 1 numbers for 2 answers"),
        ("def reward(p, a, r): return [1, float('nan')]", "gave nan for the answer 'blue'"),
        ("def other(p, a, r): return [1, 1]", "has no function reward"),
        ("import nowhere_at_all", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_function_is_one_line(workspace: Path, code: str, message: str) -> None:
    Path("short.py").write_text(code)
    with pytest.raises(Problem, match=message):
        function(Path("."), "short:reward")(["7", "blue"], ROWS)


@pytest.mark.parametrize("place", ["os:system", "../short:reward", "short", "short:", "gone:reward"])
def test_only_a_file_of_the_folder_is_imported(workspace: Path, place: str) -> None:
    Path("mine").mkdir()
    Path("short.py").write_text("raise SystemExit('imported')")
    Path("mine/short.py").write_text("def reward(p, a, r): return [1, 1]")
    with pytest.raises(Problem, match="expected FILE:NAME, a function of a file of mine"):
        function(Path("mine"), place)


def test_a_folder_outside_of_the_workspace_is_refused(workspace: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "short.py").write_text("raise SystemExit('imported')")
    with pytest.raises(Problem, match="in this workspace"):
        function(elsewhere, "short:reward")


@pytest.mark.parametrize("reward", ["exact", {"regx": "a"}, {"regex": "a", "function": "b:c"}, {"regex": "("}])
def test_a_reward_that_is_none_is_refused(reward: Any) -> None:
    with pytest.raises(Problem, match=r"params\.yaml: ppo\.reward"):
        verifiable_reward(reward, Path("."), None)
