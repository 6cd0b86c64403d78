"""Verifiable rewards: an answer is right or wrong by its row, a pattern, or a function of yours. No model judges.

`ppo.reward` names one: `exact_match`, `{regex: PATTERN}` or `{function: FILE:NAME}`. Such rewards cannot be flattered,
but only by tasks that have a right answer (RLVR: Lambert et al., arXiv 2411.15124, section 6).
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.lib.models.chat import answer_text
from tasks.lib.rl.ppo import Answers, Prompt
from tasks.lib.stage import Problem

Row = Mapping[str, Any]
Verifier = Callable[[list[str], list[Row]], list[float]]  # a reward per answer's text, by its row
KEY = "params.yaml: ppo.reward"


def verified(
    reward: str | dict[str, str], code: Path, tokenizer: Any
) -> Callable[[Sequence[Prompt], Answers], list[float]]:
    """The reward of answers' ids that `ppo.reward` names. Problem when it names none; `code` holds functions."""
    verify = _named(reward, code)

    def rewards(prompts: Sequence[Prompt], answers: Answers) -> list[float]:
        return verify([answer_text(tokenizer, answer) for answer in answers], [p.row for p in prompts])

    return rewards


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
    """1 where the answer is the row's label or its written answer, else 0. Case counts, outer blanks do not."""
    return [float(text in (row["label"], row["answer"])) for text, row in zip(answers, rows, strict=True)]


def matching(pattern: str) -> Verifier:
    """1 where the pattern is found in the answer, else 0; its group named `label` must be the row's label then."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise Problem(f"{KEY}.regex: {pattern!r} is no regular expression: {error}") from None

    def verify(answers: list[str], rows: list[Row]) -> list[float]:
        found = [compiled.search(text) for text in answers]
        return [
            float(hit is not None and hit.groupdict().get("label", row["label"]) == row["label"])
            for hit, row in zip(found, rows, strict=True)
        ]

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
        try:
            found = [float(each) for each in called([row["messages"] for row in rows], answers, rows)]
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            line = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()][-1:]
            raise Problem(f"{path}:{line[0] if line else 1}: {name}: {type(error).__name__}: {error}") from None
        if len(found) != len(answers):
            raise Problem(f"{path}: {name} gave {len(found)} numbers for {len(answers)} answers; one each")
        for number, text in zip(found, answers, strict=True):
            if not math.isfinite(number):
                raise Problem(f"{path}: {name} gave {number} for the answer {text[:60]!r}; give finite numbers")
        return found

    return verify


def _loaded(path: Path) -> Any:
    """The module of a file, which may import others of its folder. Problem when it cannot be imported."""
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Problem(f"{path}: it cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove(str(path.parent))
    return module
