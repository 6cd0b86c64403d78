"""Keys of a library's settings are known before anything starts."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest

from flows.fields import fields
from flows.params import problems

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "place",
    [
        "trl.trainer.sft_config.SFTConfig",
        "trl.trainer.dpo_config.DPOConfig",
        "trl.trainer.kto_config.KTOConfig",
        "peft.tuners.lora.config.LoraConfig",
    ],
)
def test_the_fields_read_from_the_source_are_those_of_the_class(place: str) -> None:
    module, _, name = place.rpartition(".")
    Config = getattr(importlib.import_module(module), name)
    assert fields(place) == {field.name for field in dataclasses.fields(Config)}


def test_of_a_class_that_is_not_there_no_field_is_known() -> None:
    assert fields("trl.trainer.no_config.NoConfig") == fields("no_package.NoConfig") == frozenset()


def test_a_misspelt_key_of_a_trainer_stops_the_line_before_its_first_stage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    text = Path("params.yaml").read_text(encoding="utf-8")
    wrong = tmp_path / "params.yaml"
    wrong.write_text(text.replace("num_train_epochs", "num_train_epoch", 1), encoding="utf-8")
    assert list(problems(Path("params.yaml"))) == []
    assert list(problems(wrong)) == [
        f"{wrong}: sft.trainer.num_train_epoch is not a key of SFTConfig; did you mean num_train_epochs?"
    ]
