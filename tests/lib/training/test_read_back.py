"""What a stage writes is what it trained; anything else is removed, and a line says what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_tokenizer, write_model

from tasks.lib.finetuning.adapters import fields_of, prepare_model
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.stage import Problem
from tasks.lib.training.read_back import mean_loss, save_as_trained

ROWS = [[5, 9, 30, 7], [8, 60, 61]]


def test_the_loss_is_that_of_all_tokens_but_the_first() -> None:
    model = tiny_llama(tiny_tokenizer()).train()
    total = 0.0
    for row in ROWS:
        logprobs = model(torch.tensor([row])).logits[0].log_softmax(-1)
        total -= sum(logprobs[place, token].item() for place, token in enumerate(row[1:]))
    assert mean_loss(model, ROWS) == pytest.approx(total / 5, abs=1e-6)
    assert model.training


def test_what_training_changed_in_the_configuration_is_as_in_the_base_again(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path / "base")
    model = load_policy(tmp_path / "base")
    model.config.use_cache = False
    out = tmp_path / "out"
    save_as_trained(lambda: save_model(model, tokenizer, out), out, model, ROWS, tmp_path / "base")
    assert (out / "config.json").read_bytes() == (tmp_path / "base/config.json").read_bytes()


def test_a_folder_that_computes_something_else_is_removed(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path / "base")
    model, out = load_policy(tmp_path / "base"), tmp_path / "out"

    def save() -> None:
        save_model(tiny_llama(tokenizer, seed=1), tokenizer, out)

    with pytest.raises(Problem, match=r"out: removed, for it is not what was trained: read back it has \d\.\d+ where"):
        save_as_trained(save, out, model, ROWS, tmp_path / "base")
    assert not out.exists()


def test_a_key_that_is_not_meant_to_differ_is_named(tmp_path: Path) -> None:
    tokenizer = write_model(tmp_path / "base")
    model, out = load_policy(tmp_path / "base"), tmp_path / "out"

    def save() -> None:
        model.config.use_cache = False
        save_model(model, tokenizer, out)

    with pytest.raises(Problem, match=r"out: removed, .* it has use_cache: False, its base True"):
        save_as_trained(save, out, model, ROWS, tmp_path / "base")
    save_as_trained(save, out, model, ROWS, tmp_path / "base", meant=["use_cache"])


def test_an_update_of_shared_embeddings_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged, an adapter on the embeddings changes the output layer, whose weights they are."""
    monkeypatch.setattr("tasks.lib.finetuning.adapters.refuse_modules", lambda *_: None)
    tokenizer = write_model(tmp_path / "base")
    fields = fields_of("sft.adapter", "lora", {"r": 4, "target_modules": ["embed_tokens"]})
    model: Any = prepare_model("lora", fields, load_policy(tmp_path / "base"), tokenizer)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    out = tmp_path / "out"

    def save() -> None:
        save_model(model.merge_and_unload(), tokenizer, out)

    with pytest.raises(Problem, match="not what was trained"):
        save_as_trained(save, out, model, ROWS, tmp_path / "base")
