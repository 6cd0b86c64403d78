"""Fine-tuning trains the answer and the EOS, nothing else, and an interrupted run ends in the same bytes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sections import section
from tiny_models import instruction, write_instructions, write_model
from transformers import MixtralConfig, MixtralForCausalLM

from tasks import sft
from tasks.lib.data.rows import INSTRUCTION, write_parquet
from tasks.lib.models.batches import token_batches
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.generation import generate
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.settings.methods import METHODS
from tasks.lib.stage import Problem, Stage
from tasks.lib.training import loss_guard
from tasks.lib.training.trainer_watch import Watch

TRAINER = {"max_steps": 14, "learning_rate": 3e-3, "per_device_train_batch_size": 8, "max_length": 64,
           "eval_steps": 4, "save_steps": 4}  # fmt: skip  # 40 rows: an epoch ends within steps 5 and 10


@pytest.fixture
def inputs(workspace: Path) -> Path:
    write_model(workspace / "models/base")
    write_instructions(workspace / "data/curated/train.parquet", range(40))
    write_instructions(workspace / "data/curated/validation.parquet", range(40, 56))
    return workspace


def train(**changes: Any) -> dict[str, Any]:
    trainer = {**TRAINER, **changes.pop("trainer", {})}
    sft.run(section("sft", **{"optimizer": "trainer", "trainer": trainer, **changes}), Stage("sft"))
    return json.loads(Path("reports/sft.json").read_text())


def artifacts(workspace: Path, stage: str = "sft") -> dict[str, bytes]:
    files = [*(workspace / "models" / stage).iterdir(), *(workspace / "reports").rglob(f"{stage}.*")]
    return {str(file.relative_to(workspace)): file.read_bytes() for file in files}


def child(action: Callable[[], Any]) -> int:
    """Run in a forked process (importing TRL anew takes seconds); the status as from os.waitpid."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        finally:
            os._exit(99)
    return os.waitpid(pid, 0)[1]


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, step: int, number: signal.Signals) -> None:
    original = getattr(Watch, method)

    def interrupted(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), number)
        original(self, args, state, control, **rest)

    monkeypatch.setattr(Watch, method, interrupted)


@pytest.mark.parametrize(
    ("method", "step", "number"),
    [
        ("on_step_end", 3, signal.SIGKILL),  # before the first checkpoint
        ("on_step_end", 7, signal.SIGKILL),  # between two, in the second epoch
        ("on_save", 8, signal.SIGKILL),  # a checkpoint is written but not marked: the one before it counts
        ("on_step_end", 10, signal.SIGTERM),  # saves, at the end of an epoch
        ("on_step_end", 5, signal.SIGINT),  # saves too: what `anneal run` sends first
        ("on_save", 14, signal.SIGKILL),  # the last one
        ("on_train_end", 14, signal.SIGKILL),  # after it, before the model is written
    ],
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, method: str, step: int, number: signal.Signals
) -> None:
    train()
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, method, step, number)
        status = child(train)
    if number == signal.SIGKILL:
        assert os.WIFSIGNALED(status)
    else:
        assert os.WEXITSTATUS(status) == 128 + number
        assert (inputs / f".anneal/checkpoints/sft/checkpoint-{step}/complete.json").is_file()
    assert artifacts(inputs) == expected  # nothing half-written is visible
    for name in expected:
        (inputs / name).unlink()
    train()
    assert artifacts(inputs) == expected
    assert not (inputs / ".anneal/checkpoints/sft").exists()


def test_gradient_checkpointing_costs_time_and_changes_no_weight(inputs: Path) -> None:
    """The forward pass is done again, once per layer and step."""
    passes: dict[bool, int] = {}
    for checkpointing in (False, True):
        passes[checkpointing] = 0

        def count(*_: Any, checkpointing: bool = checkpointing) -> None:
            passes[checkpointing] += 1

        with torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, _, count=count: count() if type(module).__name__ == "LlamaMLP" else None
        ):
            train(trainer={"max_steps": 3, "gradient_checkpointing": checkpointing, "eval_steps": 3})
        weights = load_file(inputs / "models/sft/model.safetensors")
        if not checkpointing:
            expected = weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
    assert passes[True] == passes[False] + 2 * 3


def test_muon_goes_on_as_if_never_stopped(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(optimizer="muon")
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 7, signal.SIGKILL)
        child(lambda: train(optimizer="muon"))
    train(optimizer="muon")
    assert artifacts(inputs) == expected


def test_muon_decays_the_matrices_as_the_trainer_says(inputs: Path) -> None:
    """A step of rate 0.1 with decay 1 takes a tenth off every matrix of a layer, besides its update."""
    once = {"max_steps": 1, "learning_rate": 0.1, "warmup_steps": 0}
    name = "model.layers.0.mlp.up_proj.weight"
    found: list[torch.Tensor] = []
    for decay in (0.0, 1.0):
        train(optimizer="muon", trainer={**once, "weight_decay": decay})
        found.append(load_file("models/sft/model.safetensors")[name])
    before = load_file("models/base/model.safetensors")[name]
    torch.testing.assert_close(found[0] - found[1], 0.1 * before)


def test_a_checkpoint_of_other_parameters_is_discarded_and_the_key_named(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 7, signal.SIGKILL)
        child(train)
    capsys.readouterr()
    train(trainer={"learning_rate": 1e-3})
    assert "params.trainer.learning_rate changed from 0.003 to 0.001" in capsys.readouterr().out


def test_the_loss_is_the_mean_over_answer_and_eos_of_the_effective_batch(inputs: Path) -> None:
    """One step on all 40 rows: the reported loss equals the sum over trained tokens / their number."""
    accumulated = {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 4}
    report = train(trainer={"max_steps": 1, **accumulated})
    model, tokenizer = load_policy("models/base"), load_tokenizer("models/base")
    total, count = 0.0, 0
    for row in sft.tokenized_instructions(tokenizer, sft.TRAIN, None)[0]:
        labels = torch.tensor(row["labels"][1:])
        logprobs = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        trained = labels != sft.IGNORED
        total -= logprobs[trained, labels[trained]].sum().item()
        count += int(trained.sum())
    assert report["loss_first"] == pytest.approx(total / count, abs=1e-4)
    assert report["trained_tokens"] == count
    first = load_file("models/sft/model.safetensors")
    train(trainer={"max_steps": 1, "per_device_train_batch_size": 40})
    whole = load_file("models/sft/model.safetensors")
    assert all(torch.allclose(first[name], whole[name], atol=1e-5) for name in first)


def test_settings_of_training_are_not_written_and_a_mixture_of_experts_answers(inputs: Path) -> None:
    """TRL asks a mixture of experts for its router's logits, with which it cannot generate."""
    tokenizer = load_tokenizer("models/base")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=len(tokenizer), **shape, num_key_value_heads=2, num_local_experts=2, max_position_embeddings=64
    )
    save_model(MixtralForCausalLM(config), tokenizer, sft.BASE)
    train(trainer={"max_steps": 1, "gradient_checkpointing": True})
    before, after = ((folder / "config.json").read_bytes() for folder in (sft.BASE, sft.OUT))
    assert after == before
    settings = {"eos_id": 1, "pad_id": 0, "max_new_tokens": 3, "temperature": 0.0, "batch_size": 2, "seed": 0}
    assert len(generate(load_policy(sft.OUT), [[5, 6], [7]], **settings)) == 2


def test_validation_figures_do_not_depend_on_the_batch_size(inputs: Path) -> None:
    """Ten answers of one word and three of eight: their tokens count, not their batches."""
    rows = [instruction(number) for number in range(13)]
    write_parquet(sft.VALIDATION, [row | {"answer": "red " * 7 + "red"} for row in rows[:3]] + rows[3:], INSTRUCTION)
    figures = ("validation_loss", "validation_accuracy", "validation_loss_before")
    found = []
    for size in (4, 64):
        report = train(trainer={"max_steps": 3, "per_device_eval_batch_size": size})
        found.append([report[name] for name in figures])
    assert found[0] == pytest.approx(found[1], abs=2e-6)


def test_it_learns_and_states_which_weights_it_kept(inputs: Path) -> None:
    report = train(trainer={"max_steps": 40}, keep="best")
    assert report["validation_loss"] < 0.8 * report["validation_loss_before"]
    assert report["validation_loss"] == report["best_validation_loss"]
    assert report["kept_step"] == report["best_step"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_leaves_a_model_of_the_line(inputs: Path, method: str) -> None:
    """The loss falls, and what was saved has the validation loss that was measured (nf4: about that)."""
    rate = 5e-2 if method in ("ia3", "bitfit", "prompt", "prefix") else 1e-2
    report = train(method=method, trainer={"max_steps": 20, "learning_rate": rate})
    assert report["method"] == method
    assert report["validation_loss"] < report["validation_loss_before"]
    if method == "prefix":
        with pytest.raises(Problem, match="holds an adapter, not a model"):
            load_policy(sft.OUT)
        return
    model, tokenizer = load_policy(sft.OUT), load_tokenizer(sft.OUT)
    total, count = 0.0, 0
    for row in sft.tokenized_instructions(tokenizer, sft.VALIDATION, None)[0]:
        labels = torch.tensor(row["labels"][1:])
        trained = labels != sft.IGNORED
        logprobs = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        total -= logprobs[trained, labels[trained]].sum().item()
        count += int(trained.sum())
    assert total / count == pytest.approx(report["validation_loss"], abs=0.2 if method == "qlora" else 1e-3)


def test_batches_of_equal_tokens_go_on_as_if_never_stopped(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 rows in nine batches of at most 96 tokens; the kill is in the second epoch."""
    report = train(batch_tokens=96)
    lengths = [
        len(row["input_ids"]) for row in sft.tokenized_instructions(load_tokenizer(sft.BASE), sft.TRAIN, None)[0]
    ]
    per_epoch = len(token_batches(lengths, 96, 0))
    assert per_epoch == 9 and report["epochs"] == pytest.approx(14 / 9, abs=1e-5)
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 10, signal.SIGKILL)
        child(lambda: train(batch_tokens=96))
    train(batch_tokens=96)
    assert artifacts(inputs) == expected


def test_rows_of_very_different_lengths_share_out_tokens_unless_rows_are_asked_for(
    inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [instruction(number) | {"messages": [{"role": "user", "content": "red"}]} for number in range(40)]
    for row in rows[::5]:
        row["answer"] = "red " * 22 + "red"
    write_parquet(sft.TRAIN, rows, INSTRUCTION)
    report = train(trainer={"max_steps": 1})
    lengths = [len(row["input_ids"]) for row in sft.tokenized_instructions(load_tokenizer(sft.BASE), sft.TRAIN, 64)[0]]
    assert len(lengths) == 40 and report["batch_tokens"] == round(8 * sum(lengths) / 40)
    assert f"{report['batch_tokens']} tokens a batch" in capsys.readouterr().out
    assert "batch_tokens" not in train(batch_tokens=None, trainer={"max_steps": 1})


def test_packed_rows_train_as_rows_do_and_go_on_as_if_never_stopped(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 rows in packs of 64 tokens; one step on all of them is that of 40 rows apart."""
    apart = train(trainer={"max_steps": 1, "per_device_train_batch_size": 40})
    expected = load_file("models/sft/model.safetensors")
    report = train(trainer={"max_steps": 1, "per_device_train_batch_size": 40}, packing=True)
    assert report["packed_rows"] < 15 and report["rows"] == apart["rows"] == 40
    assert report["loss_first"] == pytest.approx(apart["loss_first"], abs=1e-5)
    found = load_file("models/sft/model.safetensors")
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    settings = {"packing": True, "trainer": {"per_device_train_batch_size": 2}}
    train(**settings)
    whole = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 7, signal.SIGKILL)
        child(lambda: train(**settings))
    train(**settings)
    assert artifacts(inputs) == whole


def test_an_adapter_goes_on_as_if_never_stopped(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(method="lora", adapter={"r": 2})
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", 7, signal.SIGKILL)
        child(lambda: train(method="lora", adapter={"r": 2}))
    train(method="lora", adapter={"r": 2})
    assert artifacts(inputs) == expected


@pytest.mark.parametrize("step", [7, 13])  # while the ranks shrink, after it
def test_ranks_that_shrink_go_on_as_if_never_stopped(inputs: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    settings = {
        "method": "adalora", "keep": "best",
        "adapter": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 5}, "trainer": {"learning_rate": 1e-2},
    }  # fmt: skip
    train(**settings)
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_step_end", step, signal.SIGKILL)
        child(lambda: train(**settings))
    assert (inputs / f".anneal/checkpoints/sft/checkpoint-{step // 4 * 4}/ranks.safetensors").is_file()
    train(**settings)
    assert artifacts(inputs) == expected


def test_an_adapter_of_some_tasks_is_the_model_that_was_trained(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 rows 10 are of a second task; what is loaded has every bit of the model that peft merges after training."""
    trained: list[Any] = []
    save = sft.save_trained

    def watched(*given: Any) -> None:
        trained.append(given[1])
        save(*given)

    monkeypatch.setattr(sft, "save_trained", watched)
    rows = [instruction(number) | {"task": "last" if number % 4 == 0 else "first"} for number in range(40)]
    write_parquet(sft.TRAIN, rows, INSTRUCTION)
    write_parquet(sft.VALIDATION, rows[:8], INSTRUCTION)
    settings = {"method": "lora", "adapter": {"r": 2}, "trainer": {"max_steps": 3}}
    report = train(tasks=["last"], **settings)
    assert (report["rows"], report["validation_rows"]) == (10, 2)
    kept = artifacts(inputs)
    size = sum(file.stat().st_size for file in sft.OUT.glob("*.safetensors"))
    assert size < 0.5 * (sft.BASE / "model.safetensors").stat().st_size
    modules = json.loads(kept["models/sft/adapter_config.json"])["target_modules"]
    assert modules == sorted(modules)  # peft's set has another order in every process
    merged = trained[0].merge_and_unload().state_dict()
    for name, tensor in load_policy(sft.OUT).state_dict().items():
        assert torch.equal(merged[name], tensor), name
    train(tasks=["last"], **settings)
    assert artifacts(inputs) == kept
    with pytest.raises(Problem, match=r"sft.tasks: no rows of lst; there are first, last"):
        train(tasks=["lst"])


def test_asking_the_base_model_what_it_knows_changes_nothing_else(inputs: Path) -> None:
    train(trainer={"max_steps": 1})
    weights = Path("models/sft/model.safetensors").read_bytes()
    report = train(trainer={"max_steps": 1}, known_facts=5)
    assert report["base_facts"] == 5 and report["base_unknown"] == 1.0  # it has learned nothing yet
    assert Path("models/sft/model.safetensors").read_bytes() == weights


def test_a_row_that_is_too_long_is_dropped_and_counted(inputs: Path) -> None:
    long = instruction(99) | {"id": "long", "answer": "red " * 60}
    write_parquet(sft.TRAIN, [instruction(0), long], INSTRUCTION)
    report = train(trainer={"max_steps": 1})
    assert (report["rows"], report["rows_too_long"]) == (1, 1)


def test_when_every_row_is_too_long_the_problem_names_the_key(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"all 40 are longer than sft.trainer.max_length = 4"):
        train(trainer={"max_length": 4})


def test_an_empty_answer_names_file_and_row(inputs: Path) -> None:
    write_parquet(sft.TRAIN, [instruction(0) | {"id": "bare", "answer": "  "}], INSTRUCTION)
    with pytest.raises(Problem, match=r"train.parquet: row bare: an empty answer"):
        train()


def test_the_trained_tokens_are_shown(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(trainer={"max_steps": 1}, preview_rows=1)
    assert "<|user|> Say the first word red<|assistant|>[[ red<|end|>]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainer": {"learning_rat": 1}}, "sft.trainer.learning_rat is not a key .* mean learning_rate?"),
        ({"trainer": {"packing": True}}, "sft.trainer.packing cannot be set here: set sft.packing"),
        ({"trainer": {"save_strategy": "no"}}, "use save_steps"),
        ({"trainer": {"logging_steps": 500}}, "sft.trainer.logging_steps cannot be set here: every step is logged"),
        ({"trainer": {"logging_strategy": "no"}}, "sft.trainer.logging_strategy cannot be set here: every step"),
        ({"trainer": {"assistant_only_loss": True}}, "sft.trainer.assistant_only_loss .* the answer and its end alone"),
        ({"trainer": {"eos_token": "<|user|>"}}, "sft.trainer.eos_token cannot be set here: the tokenizer of"),
        ({"trainer": {"pad_token": "<|user|>"}}, "sft.trainer.pad_token cannot be set here: the tokenizer of"),
        ({"trainer": {"load_best_model_at_end": True}}, "sft.trainer.load_best_model_at_end .* sft.keep chooses"),
        ({"trainer": {"trust_remote_code": True}}, "sft.trainer.trust_remote_code .* no code of a model is run"),
        (
            {"method": "qlora", "adapter": {"init_lora_weights": "pissa"}},
            "sft.adapter.init_lora_weights: pissa changes the base's weights, but those stay in four bits",
        ),
        ({"method": "adalora", "adapter": {"lora_bias": True}}, "sft.adapter.lora_bias cannot be set here"),
        (
            {"method": "lora", "adapter": {"alpha": 1}},
            "sft.adapter.alpha is not a key of LoraConfig; did you",
        ),
        ({"method": "prompt", "adapter": {"r": 1}}, "sft.adapter.r is not a key of prompt; it has tokens"),
        ({"method": "bitfit", "adapter": {"r": 1}}, "sft.adapter.r is not a key of bitfit; it has none"),
        ({"method": "lora", "optimizer": "muon"}, "muon trains all weights"),
        ({"method": "adalora", "adapter": {"r": 4}}, "from init_r to a smaller target_r"),
        ({"method": "adalora", "adapter": {"init_r": 4}}, "from init_r to a smaller target_r"),
        ({"packing": True, "method": "prefix"}, "sft.packing: a prefix is before a row"),
        ({"packing": True, "trainer": {"max_length": None}}, "sft.packing needs sft.trainer.max_length"),
    ],
)
def test_a_wrong_key_is_named_before_anything_is_read(workspace: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(Problem, match=message):
        sft.run(section("sft", **{"optimizer": "trainer", "trainer": {}, **given}), Stage("sft"))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["embed_tokens", "q_proj"], "target_modules: the embeddings are the weights of the output layer too"),
        (["lm_head"], "target_modules: the output layer cannot be adapted"),
        (["foo"], "target_modules: llama has no module foo"),
        ("*(", "target_modules: not a regular expression"),
    ],
)
def test_layers_that_no_adapter_can_change_are_refused_before_training(
    inputs: Path, modules: Any, message: str
) -> None:
    with pytest.raises(Problem, match=f"params.yaml: sft.adapter.{message}"):
        train(method="lora", adapter={"r": 2, "target_modules": modules})


def test_what_a_library_says_of_settings_is_one_line(inputs: Path) -> None:
    with pytest.raises(Problem, match=r"^no trainer can be made of these settings: Invalid `loss_type`"):
        train(trainer={"loss_type": "hinge"})


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match=r"the loss is (nan|inf) at step \d+; rows [0-9a-f]{16}, "):
        train(trainer={"learning_rate": 1e30, "max_grad_norm": 0})
    assert not (inputs / "models/sft").exists()


def test_a_spike_names_its_rows_and_stops_if_asked(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The median of five logged losses of 0.1 is far below an untrained model's 5.7."""
    monkeypatch.setattr(loss_guard, "times_the_median", lambda loss, log: loss / 0.1)
    train(trainer={"max_steps": 1})
    assert re.search(r"the loss is 5\.\d+, 5\d times .* at step 1; rows [0-9a-f]{16}, ", capsys.readouterr().out)
    with pytest.raises(Problem, match=r"at step 1; rows [0-9a-f]{16}, .*; check them"):
        train(trainer={"max_steps": 1}, spike="stop")


def test_a_spike_is_measured_on_the_median_of_the_steps_before() -> None:
    log = [{"loss": 0.5}, {"eval_loss": 9.0}] * 19
    assert loss_guard.times_the_median(3.0, log) == 0.0  # too few
    assert loss_guard.times_the_median(3.0, [*log, {"loss": 0.4}]) == 6.0


def test_training_ends_after_evaluations_without_gain(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate of 3 makes the model worse; the run killed after its last checkpoint ends there too."""
    settings = {"patience": 1, "trainer": {"learning_rate": 3.0, "save_steps": 2, "eval_steps": 2}}
    report = train(**settings)
    assert report["steps"] < 14 and report["best_step"] == report["steps"] - 2
    expected = artifacts(inputs)
    with monkeypatch.context() as patch:
        interrupt(patch, "on_train_end", report["steps"], signal.SIGKILL)  # its last checkpoint is written
        child(lambda: train(**settings))
    train(**settings)
    assert artifacts(inputs) == expected
