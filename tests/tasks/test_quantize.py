"""quantize writes every format whole or nothing, the same bytes each time, and says what each costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sections import section
from tiny_models import write_model

from tasks import quantize
from tasks.lib.export import formats
from tasks.lib.export.manifest import verify
from tasks.lib.finetuning.adapters import fields_of, prepare_model, save_trained
from tasks.lib.models.loading import load_policy
from tasks.lib.stage import Problem, Stage

FORMATS = list(formats.FORMATS)


def run(names: list[str]) -> dict[str, Any]:
    quantize.run(section("quantize", name="tiny", formats=names), Stage("quantize"))
    return json.loads(Path("reports/quantize.json").read_text())


def test_every_format_is_written_with_what_it_costs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(workspace / "models/student")
    report = run(FORMATS)
    assert verify(Path("export/formats"))["formats"] == FORMATS
    assert report["safetensors.max_weight_error"] == 0
    assert report["int8.mean_weight_error"] < report["nf4.mean_weight_error"]
    assert report["gguf-f16.bits_per_weight"] < report["safetensors.bits_per_weight"]
    assert report["nf4.bits_per_quantised_weight"] < 4.6  # tiny matrices: the blocks of scales are half empty
    assert "rows of 16 are not a multiple of 32; kept as F16" in capsys.readouterr().out
    before = {file: file.read_bytes() for file in Path("export").rglob("*") if file.is_file()}
    run(FORMATS)
    assert {file: file.read_bytes() for file in before} == before


def test_an_adapter_is_merged_before(workspace: Path) -> None:
    tokenizer = write_model(workspace / "models/base")
    model = prepare_model("lora", fields_of("sft.adapter", "lora", {"r": 2}), load_policy("models/base"), tokenizer)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    save_trained("lora", model, tokenizer, Path("models/base"), Path("models/student"))
    report = run(["safetensors", "int8"])
    assert report["safetensors.max_weight_error"] == 0 < report["int8.max_weight_error"]
    released, expected = (
        load_policy("export/formats/safetensors").state_dict(),
        load_policy("models/student").state_dict(),
    )
    assert all(torch.equal(released[name], expected[name]) for name in expected)
    assert not Stage("quantize").checkpoints.exists()


def test_a_failure_leaves_the_earlier_export(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(workspace / "models/student")
    run(["safetensors"])
    before = (workspace / "export/formats/manifest.json").read_bytes()

    def refuse(*_: Any) -> list[str]:
        raise Problem("gguf: no")

    monkeypatch.setattr(formats, "write_gguf", refuse)
    with pytest.raises(Problem, match="gguf: no"):
        run(["safetensors", "gguf-f16"])
    assert (workspace / "export/formats/manifest.json").read_bytes() == before
    assert [path.name for path in (workspace / "export").iterdir()] == ["formats"]
