"""A student is smaller, learns its teacher, and is the same bytes after any interruption."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sections import section
from tiny_models import instruction, tiny_llama, tiny_tokenizer

from tasks import distill
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.export import student_training
from tasks.lib.models.loading import save_model
from tasks.lib.stage import Problem, Stage

TRAINING = {
    "temperature": 2.0, "alpha": 0.9, "on_policy": 0.4, "epochs": 3, "batch_size": 8, "learning_rate": 3e-3,
    "warmup": 0.1, "weight_decay": 0.01, "max_grad_norm": 1.0, "checkpoint_every": 4,
}  # fmt: skip
PARAMS: dict[str, Any] = {
    "teacher": "models/policy", "max_prompts": 32, "evaluation_rows": 10, "judge": "none", "layers": 2,
    "max_new_tokens": 5, "top_k": 64, "training": TRAINING,
}  # fmt: skip


@pytest.fixture
def inputs(workspace: Path) -> Path:
    tokenizer = tiny_tokenizer()
    teacher = tiny_llama(tokenizer)
    for weight in teacher.parameters():
        weight.data *= 6 if weight.ndim == 2 else 1  # its layers then make a difference
    save_model(teacher, tokenizer, workspace / "models/policy")
    rows = [instruction(number) for number in range(50)]
    write_parquet(workspace / "data/curated/policy.parquet", rows[:40], INSTRUCTION)
    heldout = [row | {"split": "rows"} for row in rows[40:]]
    write_parquet(workspace / "data/curated/evaluation.parquet", heldout, INSTRUCTION)
    return workspace


def run(**changes: Any) -> dict[str, Any]:
    training = TRAINING | changes.pop("training", {})
    distill.run(section("distill", **PARAMS | changes | {"training": training}), Stage("distill"))
    return json.loads(Path("reports/distill.json").read_text())


def artifacts(workspace: Path) -> dict[str, bytes]:
    files = [*(workspace / "models/student").iterdir(), *(workspace / "reports").rglob("distill.*")]
    return {str(file.relative_to(workspace)): file.read_bytes() for file in files}


def killed(monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], call: int, number: signal.Signals) -> int:
    """Run in a forked process that gets a signal at a call of `place`; the status as from os.waitpid."""
    if (pid := os.fork()) == 0:
        owner, name = place
        original, calls = getattr(owner, name), iter(range(1, 1000))

        def interrupted(*args: Any, **rest: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return original(*args, **rest)

        monkeypatch.setattr(owner, name, interrupted)
        try:
            run()
        except SystemExit as end:
            os._exit(int(str(end.code)))
        finally:
            os._exit(99)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize(
    ("place", "call", "number"),
    [
        ((distill, "teacher_targets"), 1, signal.SIGKILL),  # before the teacher has answered
        ((Stage, "progress"), 2, signal.SIGKILL),  # before the first checkpoint
        ((Stage, "progress"), 6, signal.SIGKILL),  # in the second epoch
        ((student_training, "generate"), 1, signal.SIGKILL),  # while the student writes
        ((Stage, "progress"), 7, signal.SIGTERM),
        ((distill, "curves"), 1, signal.SIGKILL),  # all but done
    ],
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str], call: int, number: signal.Signals
) -> None:
    run()
    expected = artifacts(inputs)
    for name in expected:
        (inputs / name).unlink()
    status = killed(monkeypatch, place, call, number)
    if number == signal.SIGKILL:
        assert os.WIFSIGNALED(status)
    else:
        assert os.WEXITSTATUS(status) == 128 + signal.SIGTERM
    run()
    assert artifacts(inputs) == expected
    assert not (inputs / ".anneal/checkpoints/distill").exists()


def test_a_checkpoint_of_other_parameters_is_discarded_and_the_key_named(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(monkeypatch, (Stage, "progress"), 6, signal.SIGKILL)
    capsys.readouterr()
    run(training={"learning_rate": 1e-3})
    assert "distill.training.learning_rate changed from 0.003 to 0.001" in capsys.readouterr().out


def test_a_student_comes_nearer_to_its_teacher(inputs: Path) -> None:
    matching = {"alpha": 1.0, "temperature": 1.0}
    barely = run(top_k=300, training=matching | {"learning_rate": 1e-9, "epochs": 1})
    taught = run(top_k=300, training=matching | {"learning_rate": 2e-3, "epochs": 12})
    assert taught["kl"] < 0.5 * barely["kl"] and taught["agreement"] >= barely["agreement"]
    assert taught["parameters_ratio"] < 1 and taught["rows"] == 10


def test_a_judge_adds_closing_and_gold(inputs: Path) -> None:
    panel = inputs / "panel.yaml"
    panel.write_text(
        'closing: " Ta!"\nutility: {content: 2.0, closing: 1.0}\ntie_below: 0.1\n'
        "annotators: [{name: a, content: 1.0, closing: 1.0, noise: 0.1}]\n"
    )
    report = run(judge="gold", panel="panel.yaml", training={"epochs": 1})
    assert {"teacher.gold", "student.gold", "teacher.closing", "student.closing"} <= report.keys()


def test_a_loss_that_is_not_finite_stops_before_the_step(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = student_training.off_policy_loss
    monkeypatch.setattr(student_training, "off_policy_loss", lambda *a: original(*a) * float("nan"))
    with pytest.raises(Problem, match=r"the loss of step \d+ is nan, no step was taken"):
        run()
    assert not (inputs / "models/student").exists()


def test_layers_that_are_not_there_are_named_before_anything_is_trained(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"distill.layers: expected rising layer numbers from 0 to 1, found \[5\]"):
        run(layers=[5])


def test_the_measure_of_a_task_gives_teacher_and_student_a_score(inputs: Path) -> None:
    rows = [instruction(number) | {"split": "rows", "measure": "regex:."} for number in range(40, 50)]
    write_parquet(Path("data/curated/evaluation.parquet"), rows, INSTRUCTION)
    figures = run(max_prompts=4, training={"epochs": 1})
    assert figures["score_ratio"] == pytest.approx(figures["student.score"] / figures["teacher.score"])
    assert figures["teacher.score"] > figures["teacher.exact_match"] and "exact_match_ratio" not in figures
