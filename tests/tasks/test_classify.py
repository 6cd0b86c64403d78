"""A head is learned on any body, judged beside a blind guess, and a killed run ends in the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sections import section
from tiny_models import WORDS, write_encoder, write_model

from tasks import classify
from tasks.lib.models.batches import right_pad
from tasks.lib.models.loading import load_policy
from tasks.lib.stage import Problem, Stage, read_yaml
from tasks.lib.training.trainer_watch import Watch

ROOT = Path(__file__).resolve().parents[2]
TRAINER = {
    "max_steps": 14,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 16,
    "eval_steps": 4,
    "save_steps": 4,
}
LONG = {"max_steps": 40, "eval_steps": 40, "save_steps": 40}
WARM = ("red", "old", "fast", "warm", "large", "round")


@pytest.fixture
def inputs(workspace: Path) -> Path:
    """Two words a text. The class: is the first one warm? The number: how many are."""
    write_model(workspace / "models/base")
    for kind in ("bert", "roberta"):
        write_encoder(workspace / "models" / kind, kind)
    pairs = list(product(WORDS, WORDS))
    for name, label in {
        "heat": lambda a, b: "warm" if a in WARM else "cold",
        "count": lambda a, b: 10.0 * ((a in WARM) + (b in WARM)) + 100,
    }.items():
        rows = [{"text": f"{a} {b}", "label": label(a, b)} for a, b in pairs]
        (workspace / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace


def learn(task: str = "heat", rows: str | None = None, **changes: Any) -> dict[str, Any]:
    objective = changes.pop("objective", "classification")
    given = {"rows": rows or f"{task}.jsonl", "objective": objective}
    trainer = {**TRAINER, **changes.pop("trainer", {})}
    params = section("classify", tasks={task: given}, trainer=trainer, **changes)
    classify.learn(params, Stage("classify"), [task])
    return json.loads(Path(f"reports/classify/{task}.json").read_text())


def artifacts(workspace: Path) -> dict[str, bytes]:
    files = [*(workspace / "models/classify").rglob("*"), *(workspace / "reports").rglob("*")]
    return {str(file.relative_to(workspace)): file.read_bytes() for file in files if file.is_file()}


def killed(monkeypatch: pytest.MonkeyPatch, method: str, step: int, action: Callable[[], Any]) -> None:
    original = getattr(Watch, method)

    def watched(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, args, state, control, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, method, watched)
        pid = os.fork()
        if pid == 0:
            try:
                action()
            finally:
                os._exit(99)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("model", ["base", "bert", "roberta"])
@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_every_method_learns_on_a_decoder_and_on_encoders(inputs: Path, model: str, method: str) -> None:
    """A random body: what all weights learn is sure. What is written is an ordinary model and gives these answers."""
    from transformers import pipeline

    report = learn(model=f"models/{model}", method=method, require_above_chance=method == "full", trainer=LONG)
    assert method != "full" or report["accuracy"] > report["majority_accuracy"] + 0.2
    assert report["validation_loss"] < report["validation_loss_before"]
    ask = pipeline("text-classification", model="models/classify/heat", device="cpu")
    rows = classify.read_labelled(Path("heat.jsonl"), "heat", False)["test"]
    answers = ask([row.text for row in rows])
    right = [answer["label"] == row.label for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(rows) == pytest.approx(report["accuracy"])
    if model == "base":
        body = load_policy("models/base").state_dict()
    else:
        body = load_file(f"models/{model}/model.safetensors")
    written = load_file("models/classify/heat/model.safetensors")
    kept = [name for name in written if name in body and "head" not in name]
    same = [torch.equal(body[name], written[name]) for name in kept]
    assert same and all(same) == (method == "head")  # features are fixed, or they are not


def test_a_regression_answers_in_the_units_of_its_rows(inputs: Path) -> None:
    """Targets are 100, 110 and 120: raw outputs are of size 1, and config.json says how to scale them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    report = learn("count", objective="regression", trainer={"max_steps": 120})
    assert report["mae"] < 0.6 * report["median_mae"] and report["spearman"] > 0.7
    folder = "models/classify/count"
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    rows = classify.read_labelled(Path("count.jsonl"), "count", True)["test"]
    ids = right_pad([tokenizer(row.text)["input_ids"] for row in rows], model.config.pad_token_id)
    said = model(input_ids=ids[0], attention_mask=ids[1].long()).logits[:, 0] * model.config.target_std
    errors = (said + model.config.target_mean - torch.tensor([row.number for row in rows])).abs()
    assert errors.mean().item() == pytest.approx(report["mae"], abs=1e-3)


@pytest.mark.parametrize(
    ("model", "way", "method", "step"),
    [
        ("base", "full", "on_step_end", 7),  # between two checkpoints
        ("bert", "full", "on_save", 8),  # one is written but not marked
        ("bert", "lora", "on_step_end", 10),
        ("base", "head", "on_train_end", 14),  # before the model is written
    ],
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, model: str, way: str, method: str, step: int
) -> None:
    def run() -> None:
        learn(model=f"models/{model}", method=way, require_above_chance=False)

    run()
    expected = artifacts(inputs)
    killed(monkeypatch, method, step, run)
    for name in expected:
        (inputs / name).unlink()
    run()
    assert artifacts(inputs) == expected
    assert not (inputs / ".anneal/checkpoints/classify/heat").exists()


def test_accumulated_gradients_are_those_of_the_whole_batch(inputs: Path) -> None:
    """Transformers' own loss of a decoder would be the sum of the means of the parts."""
    weights = []
    for size, parts in ((120, 1), (30, 4)):  # one step takes all 113 rows, the last part has less than 30
        one_step = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        learn(require_above_chance=False, trainer=one_step | batches)
        weights.append(load_file("models/classify/heat/model.safetensors"))
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=1e-5) for n in weights[0])


def test_a_model_no_better_than_a_constant_label_is_not_written(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always_cold = lambda model, rows, batch_size: torch.tensor([[1.0, 0.0]] * len(rows))  # noqa: E731
    monkeypatch.setattr(classify, "predicted", always_cold)
    with pytest.raises(Problem, match=r"classify/heat: on \d+ held-out rows no better than a constant label"):
        learn(trainer={"max_steps": 1})
    assert not Path("models/classify/heat").exists()
    report = learn(trainer={"max_steps": 1}, require_above_chance=False)
    assert report["balanced_accuracy"] == report["chance"] == 0.5


def test_texts_that_are_too_long_are_dropped_and_counted(inputs: Path) -> None:
    with Path("heat.jsonl").open("a") as file:
        for n in range(30):
            file.write(json.dumps({"text": f"{n} " + "red " * 100, "label": "warm"}) + "\n")
    assert learn(require_above_chance=False)["rows_too_long"] == 30
    with pytest.raises(Problem, match=r"are longer than 1 tokens; set classify\.max_length"):
        learn(max_length=1)


def test_mistakes_are_one_line_that_says_where(inputs: Path) -> None:
    params = section("classify", tasks={"heat": {"rows": "heat.jsonl"}})
    with pytest.raises(Problem, match="expected one task of heat; found warmth"):
        classify.learn(params, Stage("classify"), ["warmth"])
    with pytest.raises(Problem, match=r"params\.yaml: classify\.trainer\.lerning_rate is not a key of TrainingArg"):
        learn(trainer={"lerning_rate": 1})
    with pytest.raises(Problem, match=r"params\.yaml: classify\.tasks\.\.\./heat\..*: string should match pattern"):
        section("classify", tasks={"../heat": {"rows": "x"}})
    with pytest.raises(Problem, match=r"models/nothing does not exist"):
        learn(model="models/nothing")
    result = subprocess.run(
        [sys.executable, "-m", "tasks.classify", "mood"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1 and result.stderr.startswith("anneal: params.yaml does not exist")


def test_the_line_as_it_is_has_no_such_stage_and_another_task_does_not_touch_the_first() -> None:
    assert read_yaml(ROOT / "params.yaml")["classify"]["tasks"] == {}
    listed = read_yaml(ROOT / "dvc.yaml")["stages"]["classify"]["do"]["params"]
    fields = {f"classify.{name}" for name in classify.Params.model_fields} - {"classify.tasks"}
    assert {*listed} == {"seed", "threads", "classify.tasks.${key}", *fields}
