"""A model of the Hub, of a folder, or of a GGUF file becomes a model of the pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import files, tiny_tokenizer, write_model

from tasks.lib.export.gguf_file import write_gguf
from tasks.lib.finetuning.pretraining import new_llama
from tasks.lib.models.chat import answer_ids, example_ids, load_tokenizer
from tasks.lib.models.intake import take_in
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.stage import Problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("no/such/folder", None, "no such folder"),
        ("vocab.gguf", None, "no such folder"),
        ("org/model", None, "fixed revision"),
        ("org/model", "main", "fixed revision"),
    ],
)
def test_a_base_model_has_to_be_pinned_or_there(workspace: Path, name: str, revision: str | None, message: str) -> None:
    with pytest.raises(Problem, match=message):
        take_in(name, revision, workspace / "base")


def test_an_unreachable_hub_is_one_line(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: object, **settings: object) -> str:
        raise OSError("offline\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(Problem, match=r"^org/model@v1: cannot be downloaded: offline$"):
        take_in("org/model", "v1", workspace / "base")


def test_a_pinned_hub_model_takes_the_path_of_a_local_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = folder.rename(tmp_path / ("a" * 40))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **settings: str(commit))
    facts = take_in("org/model", "v1", tmp_path / "base")
    assert (facts["source"], facts["revision"]) == ("org/model", "a" * 40)
    assert files(tmp_path / "base") == files(commit)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(Problem, match="350 tokens, but 300 embeddings"):
        take_in(str(folder), None, tmp_path / "base")


def test_quantised_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Problem, match=r"its weights are quantised \(config.json\); name the model"):
        take_in(str(folder), None, tmp_path / "out")


@pytest.mark.parametrize("named", [{}, {"image_token": "<image>"}])
def test_an_unused_special_token_without_embedding_is_dropped(
    folder: Path, tmp_path: Path, named: dict[str, str]
) -> None:
    """google/gemma-3-1b-it: 262145 tokens, 262144 embeddings; the last is for pictures."""
    before = load_tokenizer(folder)("Say red <image>")["input_ids"]
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | named))
    assert len(load_tokenizer(folder)) == 301
    take_in(str(folder), None, tmp_path / "base")
    taken = load_tokenizer(tmp_path / "base")
    assert len(taken) == 300
    assert taken("Say red <image>")["input_ids"] == before


def test_stories260k_becomes_a_model_of_the_pipeline(shared: Path, tmp_path: Path) -> None:
    facts = take_in(str(shared / "models/stories260K"), None, tmp_path / "base")
    assert (facts["source"], facts["parameters"], facts["template"]) == ("stories260K", 260_032, "added")
    tokenizer, model = load_tokenizer(tmp_path / "base"), load_policy(tmp_path / "base")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<unk>", "</s>")
    assert model.generation_config.eos_token_id == [1, 2]
    golden = json.loads((shared / "models/stories260K/golden_greedy.json").read_text())["ids"][:40]
    greedy = model.generate(torch.tensor([golden[:1]]), max_new_tokens=39, do_sample=False)
    assert greedy[0].tolist() == golden
    ids, is_answer = example_ids(tokenizer, [{"role": "user", "content": "Who?"}], "Lily.")
    assert sum(is_answer) == len(answer_ids(tokenizer, "Lily."))
    assert len(ids) > sum(is_answer)


def gguf_of(folder: Path, precision: str = "f16") -> Path:
    """The model of a folder as a GGUF file of the pipeline's own writer, beside it."""
    path = folder.with_suffix(".gguf")
    write_gguf(load_policy(folder), load_tokenizer(folder), path, precision, "tiny")
    return path


def test_a_gguf_file_becomes_a_model_folder(folder: Path, tmp_path: Path) -> None:
    facts = take_in(str(gguf_of(folder)), None, tmp_path / "base")
    assert (facts["source"], facts["revision"], facts["dequantised_from"]) == ("model.gguf", None, "F16")
    given, taken = load_policy(folder), load_policy(tmp_path / "base")
    assert taken.config.to_dict().get("quantization_config") is None
    for name, tensor in given.state_dict().items():
        assert torch.equal(tensor.half().float(), taken.state_dict()[name]), name
    question = [{"role": "user", "content": "Say the word red."}]
    tokenizers = load_tokenizer(folder), load_tokenizer(tmp_path / "base")
    assert len({tuple(example_ids(tokenizer, question, "red")[0]) for tokenizer in tokenizers}) == 1


def test_a_quantised_gguf_file_says_from_what_it_was_dequantised(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    wide = new_llama(tokenizer, hidden=32, layers=1, heads=2, feed_forward=32, context=64, rope_theta=100.0)
    save_model(wide, tokenizer, tmp_path / "model")
    facts = take_in(str(gguf_of(tmp_path / "model", "q8_0")), None, tmp_path / "base")
    assert facts["dequantised_from"] == "Q8_0"


@pytest.mark.parametrize("is_gguf", [False, True])
@pytest.mark.parametrize(("precision", "kept"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_is_kept_in_the_precision_that_is_asked_for(
    folder: Path, tmp_path: Path, is_gguf: bool, precision: str, kept: str
) -> None:
    model = str(gguf_of(folder)) if is_gguf else str(folder)
    take_in(model, None, tmp_path / "base", precision=precision)
    (file,) = (tmp_path / "base").glob("*.safetensors")
    assert {str(tensor.dtype) for tensor in load_file(file).values()} == {f"torch.{kept}"}
    assert str(load_policy(tmp_path / "base").dtype) == f"torch.{kept}"


def test_a_gguf_file_may_lie_in_an_installed_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    gguf_of(folder).rename(package / "tiny.gguf")
    monkeypatch.syspath_prepend(package.parent)
    assert take_in("some_model:tiny.gguf", None, tmp_path / "base")["source"] == "some_model:tiny.gguf"
    with pytest.raises(Problem, match=r"has no such \.gguf file; it has: tiny\.gguf"):
        take_in("some_model:other.gguf", None, tmp_path / "base")
    with pytest.raises(Problem, match="the package not_there is not installed"):
        take_in("not_there:tiny.gguf", None, tmp_path / "base")


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5])
def test_a_damaged_gguf_file_is_one_line(folder: Path, tmp_path: Path, keep: float) -> None:
    path = gguf_of(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else int(keep)])
    with pytest.raises(Problem, match=r"^model\.gguf: not a GGUF file, or damaged") as caught:
        take_in(str(path), None, tmp_path / "base")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_a_vocabulary_without_tensors_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="holds a vocabulary, but no model"):
        take_in(str(shared / "models/ggml-vocab-llama-spm.gguf"), None, tmp_path / "base")
