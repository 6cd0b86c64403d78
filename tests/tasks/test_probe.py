"""The probe finds what a model cannot do, and says of all parameters at once which ask for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_tokenizer, write_model
from transformers import AutoConfig, AutoModelForCausalLM

from tasks import probe
from tasks.lib.settings.methods import METHODS
from tasks.lib.stage import Problem, Stage, read_yaml, write_json

ROOT = Path(__file__).resolve().parents[2]
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def write_other(kind: str, **changes: Any) -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + 20, **SHAPE | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(probe.BASE)
    tokenizer.save_pretrained(probe.BASE)


def report(changes: dict[str, Any]) -> dict[str, Any]:
    """The report with the project's params.yaml, in which some keys (`sft.method`) have other values."""
    document = read_yaml(ROOT / "params.yaml")
    for key, value in changes.items():
        *groups, last = key.split(".")
        section = document
        for group in groups:
            section = section[group]
        section[last] = value
    write_json(Path("params.yaml"), document)  # which is YAML, too
    probe.run(probe.Params(), Stage("probe"))
    return json.loads(Path("reports/probe.json").read_text())


def mistakes(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(Problem) as caught:
        report(changes)
    assert not Path("reports/probe.json").exists()
    return str(caught.value).splitlines()


def test_the_embedded_kind_of_model_can_do_everything(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(probe.BASE)
    found = report({})
    facts = {"architecture": "llama", "layers": 2, "positions": 64, "tied_embeddings": True}
    assert facts.items() <= found.items()
    assert all(value for name, value in found.items() if isinstance(value, bool)), found
    printed = capsys.readouterr().out
    assert "probe  causal           yes" in printed and "probe  gguf             yes" in printed


def test_an_encoder_is_no_causal_model(workspace: Path) -> None:
    write_other("bert")
    assert mistakes({})[0].startswith("params.yaml: base.model: a later token changes the prediction of an earlier one")


def test_a_sliding_window_takes_no_shared_prompt_and_all_mistakes_are_named_at_once(workspace: Path) -> None:
    write_other("mistral", sliding_window=16)
    lines = mistakes({"sft.packing": True, "dpo.share_prompt": True, "sft.trainer.max_length": 65})
    keys = [line.split(": ")[1] for line in lines]
    assert keys == [
        "reward.training.share_prompt", "dpo.share_prompt", "quantize.formats", "sft.trainer.max_length"
    ]  # fmt: skip


def test_a_window_wider_than_every_row_does_no_harm(workspace: Path) -> None:
    write_other("mistral", sliding_window=4096)
    assert [line.split(": ")[1] for line in mistakes({})] == ["quantize.formats"]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "full"])
def test_every_method_is_tried_without_weights(workspace: Path, method: str) -> None:
    write_model(probe.BASE)
    assert report({"sft.method": method, "sft.optimizer": "trainer"})["sft_method"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("distill.layers", [0, 2], "distill.layers: expected rising layer numbers from 0 to 1, found"),
        ("ppo.lora", {"target_modules": ["nothing"]}, "ppo.lora: .*; set target_modules, or lora to null"),
        ("dpo.lora", {"target_modules": ["nothing"]}, "dpo.lora: .*; set target_modules, or lora to null"),
        ("release.max_new_tokens", 64, "release.max_new_tokens: 64 tokens leave no room for a prompt"),
    ],
)
def test_what_the_model_has_no_place_for_is_refused(workspace: Path, key: str, value: Any, line: str) -> None:
    write_model(probe.BASE)
    (found,) = mistakes({key: value})
    assert re.match(rf"params\.yaml: {line}", found)


def test_dvc_runs_it_again_when_a_key_that_it_reads_changes() -> None:
    """Each key of params.yaml in the stage's list exists, and each section that it reads is there."""
    document = read_yaml(ROOT / "params.yaml")
    keys = read_yaml(ROOT / "dvc.yaml")["stages"]["probe"]["params"]
    for key in keys:
        value = document
        for part in key.split("."):
            value = value[part]
    assert {key.split(".")[0] for key in keys} >= set(probe.Wishes.__annotations__)
