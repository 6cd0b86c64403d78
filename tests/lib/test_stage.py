"""What stages share: mistakes in params.yaml are named by file, stage and key; files are written whole."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from tasks.lib.stage import Problem, Stage, main, read_params, read_yaml, replaced, validated, write_json


class Optimiser(BaseModel, extra="forbid"):
    learning_rate: float = 1e-3


class Params(BaseModel, extra="forbid"):
    steps: int = Field(10, ge=1)
    name: str
    optimiser: Optimiser = Optimiser()
    ending: Optimiser | None = None


def write(text: str, path: str = "params.yaml") -> Path:
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def problem_of(section: str, head: str = "seed: 1\nthreads: 1\n") -> str:
    write(f"{head}sft:\n{section}")
    with pytest.raises(Problem) as caught:
        read_params("sft", Params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_are_read_as_yaml_1_2_reads_them(workspace: Path) -> None:
    write("seed: 1\nthreads: 2\nsft: {name: off, optimiser: {learning_rate: 2e-5}}\n")
    params, stage = read_params("sft", Params)
    assert params.optimiser.learning_rate == 2e-5
    assert params.name == "off"  # YAML 1.1 would make it false
    assert (stage.name, stage.seed, stage.threads) == ("sft", 1, 2)


def test_a_misspelt_key_names_the_nearest_right_one(workspace: Path) -> None:
    assert problem_of("  name: a\n  step: 3\n") == (
        "params.yaml: sft.step is not a key of stage sft; did you mean steps?"
    )
    assert "sft.optimiser.lerning_rate is not a key" in problem_of("  name: a\n  optimiser: {lerning_rate: 1}\n")
    assert "did you mean learning_rate?" in problem_of("  name: a\n  ending: {learningrate: 1}\n")


def test_a_key_that_resembles_nothing_lists_the_known_ones(workspace: Path) -> None:
    assert "known keys: ending, name, optimiser, steps" in problem_of("  name: a\n  qqq: 3\n")


def test_missing_and_wrong_values_are_named(workspace: Path) -> None:
    assert "sft.name is missing" in problem_of("  steps: 3\n")
    assert problem_of("  name: a\n  steps: 0\n").endswith("found 0")
    assert "sft.steps: input should be a valid integer" in problem_of("  name: a\n  steps: many\n")
    assert "expected a section of keys, found None" in problem_of("")


@pytest.mark.parametrize(("head", "key"), [
    ("threads: 1\n", "seed"), ("seed: true\nthreads: 1\n", "seed"), ("seed: 1\nthreads: 0\n", "threads"),
    ("seed: -1\nthreads: 1\n", "seed"), ("seed: 1.5\nthreads: 1\n", "seed"),
])  # fmt: skip
def test_the_shared_keys_are_whole_numbers(workspace: Path, head: str, key: str) -> None:
    assert f"params.yaml: {key}: expected a whole number" in problem_of("  name: a\n", head)


def test_a_precision_that_does_not_exist_is_named(workspace: Path) -> None:
    head = "seed: 1\nthreads: 1\nprecision: half\n"
    assert "params.yaml: precision: expected one of auto, float32, bfloat16" in problem_of("  name: a\n", head)


def test_a_section_that_is_not_there_is_named(workspace: Path) -> None:
    write("seed: 1\nthreads: 1\n")
    with pytest.raises(Problem, match="the section sft is missing"):
        read_params("sft", Params)
    write("- a list\n")
    with pytest.raises(Problem, match="expected sections, found list"):
        read_params("sft", Params)


@pytest.mark.parametrize(("text", "where"), [
    ("a: 1\nb: 2\na: 3\n", "x.yaml:3:1"),
    ("a: {b: 1, b: 2}\n", "x.yaml:1:"),
    ("a: [1, 2\nb: 3\n", "x.yaml:2:"),
    ("a: !!python/object/apply:os.system ['true']\n", "x.yaml:1:4"),
])  # fmt: skip
def test_broken_yaml_is_named_by_line(workspace: Path, text: str, where: str) -> None:
    with pytest.raises(Problem) as caught:
        read_yaml(write(text, "x.yaml"))
    assert str(caught.value).startswith(where)


def test_yaml_that_is_no_text_or_not_there(workspace: Path) -> None:
    Path("x.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(Problem, match="not UTF-8"):
        read_yaml(Path("x.yaml"))
    with pytest.raises(Problem, match=r"y\.yaml does not exist"):
        read_yaml(Path("y.yaml"))


def test_validated_names_the_file_it_was_given() -> None:
    with pytest.raises(Problem, match=r"presets/gpu\.yaml: sft\.stepz"):
        validated("sft", Params, {"name": "a", "stepz": 1}, Path("presets/gpu.yaml"))


def test_replaced_is_all_or_nothing(workspace: Path) -> None:
    path = write("old", "kept.txt")
    with pytest.raises(RuntimeError), replaced(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [each.name for each in workspace.iterdir()] == ["kept.txt"]
    with replaced(Path("new/deep.txt")) as temporary:
        temporary.write_text("whole")
    assert Path("new/deep.txt").read_text() == "whole"


def test_a_report_is_flat_rounded_and_finite(workspace: Path) -> None:
    stage = Stage("sft")
    stage.report({"loss": 1.23456789, "steps": 3, "chosen": "dpo"})
    assert json.loads(Path("reports/sft.json").read_text()) == {"loss": 1.23457, "steps": 3, "chosen": "dpo"}
    with pytest.raises(Problem, match="the figure loss is nan"):
        stage.report({"loss": math.nan})
    with pytest.raises(TypeError):
        stage.report({"loss": [1.0]})
    assert json.loads(Path("reports/sft.json").read_text())["loss"] == 1.23457  # the good report is still there


def test_write_json_gives_the_same_bytes(workspace: Path) -> None:
    for name in "ab":
        write_json(Path(name), {"z": 1, "a": "é"})
    assert Path("a").read_bytes() == Path("b").read_bytes() == '{\n  "z": 1,\n  "a": "é"\n}\n'.encode()


def test_seeds_differ_by_purpose_stage_and_seed_and_never_by_process() -> None:
    draws = itertools.product(("sft", "dpo"), (0, 1), ("a", "b", 1))
    seeds = {Stage(name, seed).seed_of(word) for name, seed, word in draws}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert Stage("sft", 17).seed_of("kl", "dpo") == Stage("sft", 17).seed_of("kl", "dpo")


def test_progress_is_not_a_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage("sft")
    for step in range(1, 101):
        stage.progress(step, 100, loss=1.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 2
    assert lines[-1] == "sft  100/100  loss 1"


def run_main(action: object) -> int | str | None:
    """The exit status of a stage that does `action`; None for success."""

    def run(params: Params, stage: Stage) -> None:
        if isinstance(action, BaseException):
            raise action

    try:
        main("tasks/sft.py", Params, run)
    except SystemExit as end:
        return end.code
    return None


def test_main_turns_a_problem_into_one_line(workspace: Path) -> None:
    write("seed: 1\nthreads: 1\nsft: {name: a}\n")
    assert run_main("nothing") is None
    assert run_main(Problem("rows.csv:3: what")) == "anneal: rows.csv:3: what"
    assert run_main(KeyboardInterrupt()) == 130
    full = OSError(28, "No space left on device", "models/sft/model.safetensors")
    assert run_main(full) == (
        "anneal: sft: models/sft/model.safetensors: No space left on device; nothing earlier was changed"
    )


def test_main_reads_the_section_before_anything_runs(workspace: Path) -> None:
    write("seed: 1\nthreads: 1\nsft: {nam: a}\n")
    assert "did you mean name?" in str(run_main(RuntimeError("must not run")))
