"""benchmarks/gpu.py without a GPU: its meter by hand, and every part of it on tiny models."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer

from benchmarks import gpu
from benchmarks.gpu_parts import Meter, metered

PARTS = ["base", "log-probs", *(part.name for part in gpu.PARTS)]


def test_a_meter_counts_tokens_and_operations_of_passes_between_the_first_step_and_the_last() -> None:
    model = tiny_llama(tiny_tokenizer())
    model.lm_head.requires_grad_(False)  # tied: the embeddings too
    body = sum(p.numel() for p in model.model.parameters())
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    assert 0 < trained < body
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.zeros(3, 5, dtype=torch.long)
    with metered() as meter:
        for _ in range(3):
            model(input_ids=ids).logits.sum().backward()
            optimizer.step()
        with torch.no_grad():
            model(input_ids=ids)
    assert [(tokens, graded) for _, tokens, graded, _ in meter.passes] == [(15, 15)] * 3 + [(15, 0)]
    figures = meter.figures()
    assert figures["operations"] == 2 * 15 * (4 * body + 2 * trained)  # the first step is not in the window
    assert figures["tokens_per_second"] == pytest.approx(30 / figures["window"])
    model(input_ids=ids)
    assert len(meter.passes) == 4


def test_without_training_all_passes_count() -> None:
    meter = Meter()
    meter.passes = [(0.0, 8, 0, 16.0), (1.0, 8, 0, 16.0)]
    assert meter.figures()["operations"] == 32


def test_a_line_has_the_share_of_the_data_sheet() -> None:
    row = {"model": "1b", "part": "sft", "seconds": 20.0, "tokens_per_second": 5e4, "operations": 4e15, "window": 10.0,
           "peak_bytes": 9e9, "plan_bytes": 8e9}  # fmt: skip
    assert gpu.line(row, 1e15).split() == [
        "1b", "sft", "20.0", "s", "50,000/s", "40.0%", "9.00", "GB", "8.00", "GB"
    ]  # fmt: skip
    assert "%" not in gpu.line(row, None)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here; --device cpu --tiny"):
        gpu.main([])


@pytest.mark.slow
def test_every_part_runs_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for FSDP2, which needs a GPU, and vLLM where it is not installed."""
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    gpu.main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["part"]: row for row in result["rows"]}
    assert list(rows) == PARTS
    assert "FSDP needs GPUs" in rows.pop("fsdp2")["failed"]
    rows.pop("vllm")
    assert {name: row["failed"] for name, row in rows.items() if "failed" in row} == {}
    for name in ("qlora", "sft", "reward", "dpo", "ppo", "distill"):
        assert rows[name]["tokens_per_second"] > 0 and rows[name]["operations"] > 0


def test_a_part_in_a_process_of_its_own_fails_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log").write_text("a line\nanneal: sft: models/base is missing\nTraceback\n")
    assert gpu.last_line() == "anneal: sft: models/base is missing"
