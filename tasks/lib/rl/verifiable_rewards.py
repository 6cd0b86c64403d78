"""Verifiable rewards: an answer is right or wrong by its row, a pattern, or a function of yours. No model is asked.

`ppo.reward` names one: `exact_match` (the measure of the row's task, which is an exact match unless its source.yaml
says otherwise), `{regex: PATTERN}` or `{function: FILE:NAME}`. A policy cannot exploit them as it can a reward model,
but only tasks with a right answer have them (RLVR: Lambert et al., arXiv 2411.15124, section 6).
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.lib.evaluation.measures import REGEX, score
from tasks.lib.models.chat import answer_text
from tasks.lib.rl.batch import Batch
from tasks.lib.rl.environment import RewardFunction
from tasks.lib.stage import Problem

Row = Mapping[str, Any]
Verifier = Callable[[list[str], list[Row]], list[float]]  # a score per answer's text, by its row
KEY = "params.yaml: ppo.reward"


def verifiable_reward(reward: str | dict[str, str], code: Path, tokenizer: Any) -> RewardFunction:
    """The reward of answers' texts that `ppo.reward` names. Problem when it names none; `code` holds functions."""
    verify = _named(reward, code)

    def scores(batch: Batch) -> list[float]:
        texts = [answer_text(tokenizer, answer) for answer in batch.answers]
        return verify(texts, [prompt.row for prompt in batch.prompts])

    return scores


def _named(reward: str | dict[str, str], code: Path) -> Verifier:
    match reward:
        case "exact_match":
            return exact
        case {"regex": str(pattern), **rest} if not rest:
            return matching(pattern)
        case {"function": str(place), **rest} if not rest:
            return function(code, place)
    raise Problem(
        f"{KEY}: expected model, exact_match, {{regex: PATTERN}} or {{function: FILE:NAME}}, found {reward!r}"
    )


def exact(answers: list[str], rows: list[Row]) -> list[float]:
    """1 where the answer is the row's written answer, else how right it is by the measure of the row's task."""
    scores = []
    for text, row in zip(answers, rows, strict=True):
        is_written = float(text == row["answer"])
        scores.append(is_written or score(row["measure"], row["label"], text, row["choices"]))
    return scores


def matching(pattern: str) -> Verifier:
    """1 where the pattern is found in the answer, else 0; its group named `label` must be the row's label then."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise Problem(f"{KEY}.regex: {pattern!r} is not a regular expression: {error}") from None

    def verify(answers: list[str], rows: list[Row]) -> list[float]:
        return [score(REGEX + pattern, row["label"], text) for text, row in zip(answers, rows, strict=True)]

    return verify


def function(code: Path, place: str) -> Verifier:
    """The function NAME of FILE.py in the folder `code`: NAME(prompts, answers, rows) -> a number per answer.

    `prompts` are messages, `answers` texts, `rows` the instructions. Problem when there is no such function in this
    workspace, when it raises, or when it does not give a finite number per answer.
    """
    file, _, name = place.partition(":")
    path = code / f"{file}.py"
    inside = path.resolve().is_relative_to(Path.cwd()) and path.resolve().is_relative_to(code.resolve())
    if not (name.isidentifier() and inside and path.is_file()):
        raise Problem(f"{KEY}.function: {place}: expected FILE:NAME, a function of a file of {code}, in this workspace")
    called = getattr(_loaded(path), name, None)
    if not callable(called):
        raise Problem(f"{KEY}.function: {path} has no function {name}")

    def verify(answers: list[str], rows: list[Row]) -> list[float]:
        prompts = [row["messages"] for row in rows]
        try:
            scores = [float(score) for score in called(prompts, answers, rows)]
        except Exception as error:
            line = _last_line_in(path, error)
            raise Problem(f"{path}:{line}: {name}: {type(error).__name__}: {error}") from None
        if len(scores) != len(answers):
            raise Problem(f"{path}: {name} gave {len(scores)} numbers for {len(answers)} answers; return one for each")
        for given, text in zip(scores, answers, strict=True):
            if not math.isfinite(given):
                raise Problem(f"{path}: {name} gave {given} for the answer {text[:60]!r}; give finite numbers")
        return scores

    return verify


def _last_line_in(path: Path, error: Exception) -> int:
    """The line of the file that raised an error, or called what raised it; 1 if none did."""
    line = 1
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).resolve() == path.resolve():
            line = frame.lineno or 1
    return line


def _loaded(path: Path) -> Any:
    """The module of a file, which may import others of its folder. Problem when it cannot be imported."""
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Problem(f"{path} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(path.parent))
    return module
