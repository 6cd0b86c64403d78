"""A model folder is read without running its code, whole, finite, and written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import files, tiny_llama, tiny_tokenizer, write_model

from tasks.lib.models import loading
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.model_folder import weights_hash
from tasks.lib.stage import Problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def test_saving_what_was_loaded_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save_model(load_policy(folder), load_tokenizer(folder), tmp_path / "again")
    assert files(folder) == files(tmp_path / "again")
    assert weights_hash(folder) == weights_hash(tmp_path / "again")
    assert not list(tmp_path.glob(".*"))  # no temporary folders


def test_nothing_of_a_machine_stands_in_a_model_folder(folder: Path) -> None:
    assert not [name for name, content in files(folder).items() if str(folder.parent).encode() in content]


def test_a_failed_save_leaves_the_earlier_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(tiny_llama(tokenizer, seed=1), tokenizer, folder)
    assert files(folder) == before


def test_dropout_is_off(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    assert load_policy(folder).config.attention_dropout == 0.0


def damaged(folder: Path, how: str) -> str:
    """Damage a folder in one way; the pattern that the Problem must match."""
    weights = folder / "model.safetensors"
    if how == "NaN":
        tensors = load_file(weights)
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
        return r"tensor model.norm.weight holds NaN"
    if how == "missing tensor":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, {"format": "pt"})
        return r"1 tensors missing or of another shape, first model.norm.weight; they would be random"
    if how == "another shape":
        tensors = load_file(weights)
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:3].clone()
        save_file(tensors, weights, {"format": "pt"})
        return "1 tensors missing or of another shape, first model.norm.weight"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        return "the model cannot be read"
    if how == "pickle only":
        weights.rename(folder / "pytorch_model.bin")
        return r"no \*.safetensors; pytorch_model.bin is not loaded"
    if how == "index names a lost file":
        index = {"weight_map": {"a": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return "model-00002-of-00002.safetensors is missing, but the index names it"
    if how == "adapter":
        (folder / "adapter_config.json").write_text("{}")
        return "holds an adapter, not a model, and no base.json"
    if how == "no config":
        (folder / "config.json").unlink()
        return "config.json is missing"
    config = json.loads((folder / "config.json").read_text())
    change = {"code": {"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "other kind": {"model_type": "vit"}}[how]
    (folder / "config.json").write_text(json.dumps(config | change))
    return {"code": "auto_map asks to run the model's own code", "other kind": "vit is not a causal"}[how]


@pytest.mark.parametrize(
    "how",
    ["NaN", "missing tensor", "another shape", "truncated", "pickle only", "index names a lost file", "adapter",
     "no config", "code", "other kind"],
)  # fmt: skip
def test_a_damaged_folder_is_one_clear_line(folder: Path, how: str) -> None:
    message = damaged(folder, how)
    with pytest.raises(Problem, match=message) as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value)


def test_a_swapped_tokenizer_file_is_a_problem(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Problem, match="the tokenizer cannot be read"):
        load_tokenizer(folder)


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(tokenizer)
    model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(Problem, match=r"not written: the tensor model\.norm\.weight"):
        save_model(model, tokenizer, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_is_not_a_folder(shared: Path) -> None:
    with pytest.raises(Problem, match="is a file"):
        loading.load_policy(shared / "models/ggml-vocab-llama-spm.gguf")
