"""DPO starts at log 2, uses the annotators' majority, and an interrupted run ends in the same bytes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from test_sft import artifacts, child, interrupt
from tiny_models import WORDS, ranking, write_model, write_rankings

from tasks import dpo
from tasks.lib.data.rows import RANKING, RATING, read_parquet, write_parquet
from tasks.lib.dpo import dpo_run
from tasks.lib.dpo.kto_labels import with_mismatched_answers
from tasks.lib.dpo.pairs import pairs_of, tokenize_pairs
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.models.logprobs import answer_logprobs
from tasks.lib.stage import Problem, Stage

TRAINER = {"max_steps": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "max_length": 64,
           "eval_steps": 4, "save_steps": 4}  # fmt: skip


@pytest.fixture
def inputs(workspace: Path) -> Path:
    write_model(workspace / "models/sft")
    write_rankings(workspace / "data/preferences/train.parquet", range(10))
    write_rankings(workspace / "data/preferences/heldout.parquet", range(10, 12))
    return workspace


def train(**changes: Any) -> dict[str, Any]:
    trainer = {**TRAINER, **changes.pop("trainer", {})}
    dpo.run(section("dpo", **{"trainer": trainer, "samples": 2, "max_new_tokens": 4, **changes}), Stage("dpo"))
    return json.loads(Path("reports/dpo.json").read_text())


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_first_loss_is_log_2_and_pairs_are_learned(inputs: Path, lora: dict[str, Any] | None) -> None:
    report = train(lora=lora, trainer={"max_steps": 40, "learning_rate": 1e-2})
    assert report["loss_first"] == pytest.approx(math.log(2), abs=1e-6)
    assert report["loss_last"] < report["loss_first"]
    assert report["accuracy_last"] > 0.8
    assert report["kl"] != 0
    if lora:
        assert report["trainable_parameters"] == lora_parameters(load_policy("models/sft"), rank=4)
        assert not Path("models/dpo/model.safetensors").exists()  # an adapter on the SFT model
        before, after = load_policy(dpo.SFT).state_dict(), load_policy(dpo.OUT).state_dict()
        assert after.keys() == before.keys()
        moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        assert moved == {name for name in before if "_proj" in name}  # every linear layer


def lora_parameters(model: Any, rank: int) -> int:
    """A matrix (rank, in) and one (out, rank) for every linear layer but the output layer."""
    layers = [layer for layer in model.base_model.modules() if isinstance(layer, torch.nn.Linear)]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def test_the_held_out_loss_is_that_of_the_formula(inputs: Path) -> None:
    report = train()
    tokenizer, policy, reference = load_tokenizer(dpo.OUT), load_policy(dpo.OUT), load_policy(dpo.SFT)
    pairs, _ = pairs_of(read_parquet(dpo.HELD_OUT), 2)
    rows, _ = tokenize_pairs(tokenizer, pairs, None, dpo.HELD_OUT)
    prompts = [row["prompt_ids"] for row in rows]
    sums = []
    for model in (policy, reference):
        for key in ("chosen_ids", "rejected_ids"):
            logprobs = answer_logprobs(model, prompts, [row[key] for row in rows], batch_size=4)
            sums.append(torch.stack([of_answer.sum() for of_answer in logprobs]))
    chosen, rejected, reference_chosen, reference_rejected = sums
    logits = 0.1 * ((chosen - reference_chosen) - (rejected - reference_rejected))  # arXiv 2305.18290, equation 7
    expected = -torch.nn.functional.logsigmoid(logits).mean().item()
    assert report["heldout_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "step", "number"),
    [("on_step_end", 6, signal.SIGKILL), ("on_save", 8, signal.SIGKILL), ("on_step_end", 5, signal.SIGINT)],
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, method: str, step: int, number: signal.Signals
) -> None:
    train()
    expected = artifacts(inputs, "dpo")
    with monkeypatch.context() as patch:
        interrupt(patch, method, step, number)
        status = child(train)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 128 + signal.SIGINT
    for name in expected:
        (inputs / name).unlink()
    train()
    assert artifacts(inputs, "dpo") == expected


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_a_prompt_shared_by_its_answers_starts_at_log_2_and_goes_on_after_a_kill(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    """Ten prompts with three answers each: 30 pairs, and a loss that starts at log 2."""
    settings = {"share_prompt": True, "pairs_per_prompt": 3, "lora": lora}
    report = train(**settings)
    assert report["pairs"] == 30 and report["loss_first"] == pytest.approx(math.log(2), abs=1e-5)
    expected = artifacts(inputs, "dpo")
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 6, signal.SIGKILL)
        child(lambda: train(**settings))
    train(**settings)
    assert artifacts(inputs, "dpo") == expected


@pytest.mark.parametrize("shared", [False, True])
def test_another_beta_finds_the_reference_and_ends_in_the_same_bytes(
    inputs: Path, capsys: pytest.CaptureFixture[str], shared: bool
) -> None:
    once: dict[str, Any] = {"share_prompt": shared, "trainer": {"precompute_ref_log_probs": True, "max_steps": 2}}
    other = {**once, "trainer": {**once["trainer"], "beta": 0.7}}
    train(**once)
    assert "pairs from .anneal/reference" not in capsys.readouterr().out
    train(**other)
    assert capsys.readouterr().out.count("pairs from .anneal/reference") == 2  # training and held-out
    expected = artifacts(inputs, "dpo")
    shutil.rmtree(".anneal/reference")
    train(**other)
    assert artifacts(inputs, "dpo") == expected


def test_equal_answers_are_refused_and_the_prompt_named(inputs: Path) -> None:
    write_parquet(dpo.TRAIN, [ranking(0) | {"answers": ["red", "red ", "blue"]}], RANKING)
    with pytest.raises(Problem, match=r"train.parquet: two answers to 'Say the word red .* are equal"):
        train(pairs_per_prompt=9)


def test_rankings_of_ties_only_are_a_problem(inputs: Path) -> None:
    write_parquet(dpo.TRAIN, [ranking(0) | {"ranks": [0, 0, 0]}], RANKING)
    with pytest.raises(Problem, match="there are only ties"):
        train()


def test_a_first_loss_other_than_log_2_stops_the_run(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is another model than the policy, as after merging the wrong adapter."""
    write_model(inputs / "models/other", seed=1)
    monkeypatch.setattr(dpo_run, "load_policy", lambda path, **_: load_policy("models/other"))  # of the reference
    with pytest.raises(Problem, match=r"the first loss is .*, not 0.693147"):
        train()


def test_a_misspelt_key_of_the_trainer_is_named(workspace: Path) -> None:
    with pytest.raises(Problem, match=r"dpo.trainer.betta is not a key of DPOConfig; did you mean beta\?"):
        dpo.run(section("dpo", trainer={"betta": 0.2}), Stage("dpo"))


# --- KTO, and the other losses ---


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_kto_learns_good_and_bad_answers_from_rankings(inputs: Path, lora: dict[str, Any] | None) -> None:
    """Ten prompts, three answers: the best wins twice, the worst loses twice, the middle is left out."""
    report = train(method="kto", lora=lora, trainer={"max_steps": 30, "learning_rate": 1e-2})
    assert (report["answers"], report["desirable"], report["undesirable"]) == (20, 10, 10)
    assert report["loss_first"] == pytest.approx(0.5, abs=1e-5)
    assert report["loss_last"] < 0.499 and report["margin_last"] > 0.01


def test_kto_takes_thumbs_without_any_pair(inputs: Path) -> None:
    for split, numbers in (("train", range(10)), ("heldout", range(10, 14))):
        rows = [rating(number, WORDS[(number + number % 2) % 12], number % 2 == 0) for number in numbers]
        write_parquet(inputs / f"data/preferences/ratings_{split}.parquet", rows, RATING)
    report = train(method="kto", thumbs="label")
    assert (report["desirable"], report["undesirable"], report["heldout_answers"]) == (5, 5, 4)
    with pytest.raises(Problem, match=r"kto needs good and bad answers, found 0 and 0"):
        train(method="kto", thumbs="helpfulness")


def rating(number: int, answer: str, value: float) -> dict[str, Any]:
    row = {key: ranking(number)[key] for key in ("id", "prompt", "annotator", "source", "license")}
    return row | {"answer": answer, "attribute": "label", "value": float(value)}


def test_a_killed_run_of_kto_ends_in_the_same_bytes(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(method="kto")
    expected = artifacts(inputs, "dpo")
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 6, signal.SIGKILL)
        child(lambda: train(method="kto"))
    train(method="kto")
    assert artifacts(inputs, "dpo") == expected


def test_the_mismatched_answer_is_that_of_the_row_before(inputs: Path) -> None:
    collate = with_mismatched_answers(lambda rows: [row["KL_completion_ids"] for row in rows])
    assert collate([{"completion_ids": [n]} for n in range(3)]) == [[2], [0], [1]]


LOSSES = ["hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"]
LOSSES += ["apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_trl_trains(inputs: Path, loss: str) -> None:
    smooth = {"label_smoothing": 0.1} if loss in ("robust", "exo_pair") else {}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    report = train(trainer={"loss_type": [loss], **smooth, **steps}, samples=0)
    assert math.isfinite(report["loss_last"]) and report["steps"] == 2


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_held_out_figures_do_not_depend_on_the_batch_size(inputs: Path, method: str) -> None:
    write_rankings(inputs / "data/preferences/heldout.parquet", range(10, 17))
    names = ["heldout_margin"] if method == "kto" else ["heldout_loss", "heldout_accuracy", "heldout_margin"]
    found = []
    for size in (4, 64):
        trainer = {"max_steps": 4, "per_device_eval_batch_size": size}
        report = train(method=method, pairs_per_prompt=1, trainer=trainer)
        found.append([report[name] for name in names])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("lora", [{"bias": "all"}, {"init_lora_weights": "pissa"}])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_adapter_that_moves_the_reference_is_refused(workspace: Path, method: str, lora: dict[str, Any]) -> None:
    with pytest.raises(Problem, match=r"dpo\.lora\.\w+: .* the base's .*, but the reference is the policy with"):
        train(method=method, lora=lora)
