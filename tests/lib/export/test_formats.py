"""Every format of FORMATS gives back the model and the tokens that it was made of, and says how it is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from sections import section
from tiny_models import WORDS, write_model

from tasks.lib.export.formats import FORMATS
from tasks.lib.finetuning.pretraining import train_tokenizer
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_policy
from tasks.lib.settings.quantize import FormatName
from tasks.lib.stage import Problem

TALKS = [[{"role": "user", "content": "Say the word red"}]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats") / "model"
    write_model(folder)
    return folder


def written(name: str, source: Path, export: Path) -> Path:
    folder = export / name
    folder.mkdir(parents=True)
    FORMATS[name].write(section("quantize", model=str(source), name="tiny", formats=[name]), folder)
    return folder


def test_the_settings_know_the_formats_that_there_are() -> None:
    assert list(get_args(FormatName)) == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_back_the_model_and_the_same_bytes_each_time(name: str, source: Path, tmp_path: Path) -> None:
    folder, again = written(name, source, tmp_path / "a"), written(name, source, tmp_path / "b")
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    reference, model = load_policy(source), FORMATS[name].read(folder)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        difference = (reference(ids).logits - model(ids).logits).abs().max().item()
    assert difference < 0.1
    weights = FORMATS[name].weights(folder)
    assert set(weights) <= set(reference.state_dict()) and len(weights) > 10
    for key, tensor in weights.items():
        assert (tensor.float() - reference.state_dict()[key]).abs().max() < 0.05, key


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_whose_users_would_see_other_tokens_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    folder = written(name, source, tmp_path)
    model = FORMATS[name].read(folder)
    FORMATS[name].check(folder, model, load_tokenizer(source), TALKS)
    other = train_tokenizer([f"Write {word} {word[::-1]}" for word in WORDS], 300)
    with pytest.raises(Problem, match=r"different tokens|its tokenizer is not the model's"):
        FORMATS[name].check(folder, model, other, TALKS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_says_how_it_is_loaded_from_its_folder(name: str, source: Path, tmp_path: Path) -> None:
    folder = written(name, source, tmp_path)
    assert FORMATS[name].weight_file(folder).stat().st_size > 10_000
    words = re.findall(r"[\w./-]+", FORMATS[name].how_to_load(folder))
    assert any(word.startswith(name) and (tmp_path / word).exists() for word in words)
