"""Every format of a release: how it is written, read back and checked, and how its users load it.

A new format is an entry of FORMATS and a name in `FormatName` (tasks/lib/settings/quantize.py). To release it, name it
in `quantize.formats` and give it bounds in `release.bounds` of params.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks.lib.export.gguf_checks import check_engine, check_tokens
from tasks.lib.export.gguf_file import read_gguf, read_vocabulary, write_gguf
from tasks.lib.export.gguf_vocabulary import adds_prefix_space
from tasks.lib.export.quantisation import dequantised, quantised_bits, write_bitsandbytes
from tasks.lib.models.chat import Messages, load_tokenizer
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.models.precision import kept_dtype
from tasks.lib.settings.quantize import Params
from tasks.lib.stage import Problem

ENGINE_PROMPTS = 20  # conversations that an engine is asked to answer


class Format(Protocol):
    """One format. `folder` is the folder of the format in an export; what is in it is all that its users get."""

    def write(self, settings: Params, folder: Path) -> list[str]:
        """Write the full-precision model `settings.model` into the empty folder; returns lines for the log.

        Raises Problem for a model that the format cannot hold.
        """

    def weight_file(self, folder: Path) -> Path:
        """The file of weights."""

    def weights(self, folder: Path) -> dict[str, Tensor]:
        """The stored weights, dequantised to f32 and named as in the full-precision model."""

    def quantised_bits(self, folder: Path) -> float | None:
        """Bits per weight of the quantised matrices alone, scales included; None if they cannot be told apart."""

    def read(self, folder: Path) -> PreTrainedModel:
        """The model as its users load it, on the CPU."""

    def check(
        self, folder: Path, model: PreTrainedModel, tokenizer: Any, conversations: Sequence[Messages]
    ) -> list[str]:
        """Compare what lies around the weights, such as tokens, with the full-precision model's `tokenizer`.

        `model` is what `read` gave, `conversations` are there to try it on. Returns lines for the log. Raises Problem
        when users would see something else than the full-precision model does.
        """

    def how_to_load(self, folder: Path) -> str:
        """For the model card: how users load it, by a path relative to the export."""

    def advice(self, tokenizer: Any) -> str | None:
        """For the model card: what users must heed with this tokenizer, in a sentence or two."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder of transformers: full precision, or quantised by bitsandbytes."""

    write: Callable[[Params, Path], list[str]]
    loaded_by: str  # libraries that users need
    is_quantised: bool = False

    def weight_file(self, folder: Path) -> Path:
        return folder / "model.safetensors"

    def weights(self, folder: Path) -> dict[str, Tensor]:
        return dequantised(folder)

    def quantised_bits(self, folder: Path) -> float | None:
        return quantised_bits(folder) if self.is_quantised else None

    def read(self, folder: Path) -> PreTrainedModel:
        model: PreTrainedModel = load_policy(folder, dtype=torch.float32, on="cpu")  # as the gate compares
        return model

    def check(
        self, folder: Path, model: PreTrainedModel, tokenizer: Any, conversations: Sequence[Messages]
    ) -> list[str]:
        if load_tokenizer(folder).backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
            raise Problem("its tokenizer is not the model's")
        return []

    def how_to_load(self, folder: Path) -> str:
        return f'`AutoModelForCausalLM.from_pretrained("{folder.name}")` of {self.loaded_by}'

    def advice(self, tokenizer: Any) -> str | None:
        return None


def write_kept(settings: Params, folder: Path) -> list[str]:
    """In the numbers in which the model is kept, which loses nothing."""
    dtype = kept_dtype(settings.model)
    save_model(load_policy(settings.model), load_tokenizer(settings.model), folder, dtype=dtype)
    return []


def write_bfloat16(settings: Params, folder: Path) -> list[str]:
    save_model(load_policy(settings.model), load_tokenizer(settings.model), folder, dtype=torch.bfloat16)
    return []


def write_int8(settings: Params, folder: Path) -> list[str]:
    write_bitsandbytes(settings.model, folder, "int8", settings.int8_threshold, settings.keep)
    return []


def write_nf4(settings: Params, folder: Path) -> list[str]:
    write_bitsandbytes(settings.model, folder, "nf4", settings.int8_threshold, settings.keep)
    return []


@dataclass(frozen=True)
class GgufFile:
    """One file for llama.cpp, which holds the vocabulary too."""

    precision: str  # of the matrices: see write_gguf

    def write(self, settings: Params, folder: Path) -> list[str]:
        model, tokenizer = load_policy(settings.model), load_tokenizer(settings.model)
        file = folder / f"{settings.name}-{self.precision}.gguf"
        return write_gguf(model, tokenizer, file, self.precision, settings.name)

    def weight_file(self, folder: Path) -> Path:
        (file,) = folder.glob("*.gguf")
        return file

    def weights(self, folder: Path) -> dict[str, Tensor]:
        return dict(self.read(folder).state_dict())

    def quantised_bits(self, folder: Path) -> float | None:
        return None

    def read(self, folder: Path) -> PreTrainedModel:
        return read_gguf(self.weight_file(folder))

    def check(
        self, folder: Path, model: PreTrainedModel, tokenizer: Any, conversations: Sequence[Messages]
    ) -> list[str]:
        file = self.weight_file(folder)
        questions = [messages[-1]["content"] for messages in conversations]
        check_tokens(tokenizer, read_vocabulary(file), conversations, questions)
        line = check_engine(file, model, tokenizer, conversations[:ENGINE_PROMPTS])
        return [line] if line else []

    def how_to_load(self, folder: Path) -> str:
        return f"`llama-cli --jinja -m {folder.name}/{self.weight_file(folder).name}` of llama.cpp"

    def advice(self, tokenizer: Any) -> str | None:
        if not adds_prefix_space(tokenizer):
            return None
        return (
            "The GGUF files' chat template is the model's. Give llama.cpp raw text with a leading space: "
            "it never adds the one that the tokenizer asks for."
        )


FORMATS: dict[str, Format] = {
    "safetensors": ModelFolder(write_kept, "transformers"),
    "safetensors-bf16": ModelFolder(write_bfloat16, "transformers"),
    "int8": ModelFolder(write_int8, "transformers, with bitsandbytes", is_quantised=True),
    "nf4": ModelFolder(write_nf4, "transformers, with bitsandbytes", is_quantised=True),
    "gguf-f16": GgufFile("f16"),
    "gguf-q8_0": GgufFile("q8_0"),
}
