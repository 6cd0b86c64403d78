"""int8 keeps outliers apart, NF4 costs 4.127 bits, integer grids err by at most half a step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PretrainedConfig,
)

from tasks.lib.export import quantisation
from tasks.lib.export.quantisation import dequantised, quantised_bits, weight_error
from tasks.lib.finetuning.adapters import load_quantised
from tasks.lib.models.loading import load_policy, save_model
from tasks.lib.stage import Problem

SMALL = {"vocab_size": 301, "hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("quantisation") / "model"
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FalconConfig(**SMALL, num_hidden_layers=1, num_attention_heads=2), "quantises 0% of the numbers"),
        (MixtralConfig(**SMALL, num_hidden_layers=1, num_attention_heads=2, num_local_experts=4), r"quantises \d+% of"),
        (GPT2Config(vocab_size=301, n_embd=64, n_layer=1, n_head=2), "gpt2 stores its matrices transposed"),
    ],
    ids=["falcon", "mixtral", "gpt2"],
)
def test_what_would_not_be_quantised_is_refused(
    tmp_path: Path, kind: quantisation.Kind, config: PretrainedConfig, message: str
) -> None:
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config), tiny_tokenizer(), tmp_path / "model")
    with pytest.raises(Problem, match=rf"^{kind}: .*{message}"):
        quantisation.write_bitsandbytes(tmp_path / "model", tmp_path / kind, kind, 6.0, ["lm_head"])


def test_int8_with_an_outlier_column_needs_the_decomposition() -> None:
    """LLM.int8(): one activation of 60 spoils the scale of its row unless its column stays 16-bit."""
    from bitsandbytes.nn import Linear8bitLt

    torch.manual_seed(0)
    weight = torch.randn(64, 64) / 8
    scale = weight.abs().amax(1, keepdim=True) / 127
    weight = (weight / scale).round() * scale  # int8 loses nothing of these: what is left is activations
    x = torch.randn(16, 64)
    x[:, 7] = 60.0

    def error(threshold: float) -> float:
        layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=threshold)
        layer.weight.data = weight.clone()
        layer = layer.to("cpu").eval()  # in training bitsandbytes multiplies floats on a CPU
        with torch.no_grad():
            return (layer(x) - x @ weight.T).abs().mean().item()

    assert error(6.0) < error(0.0) / 10


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8 + 32 / 128), ("nf4", 4.127)])
def test_bits_per_weight_are_those_of_the_paper(
    model_folder: Path, tmp_path: Path, kind: quantisation.Kind, bits: float
) -> None:
    quantisation.write_bitsandbytes(model_folder, tmp_path / kind, kind, 6.0, ["lm_head"])
    assert quantised_bits(tmp_path / kind) == pytest.approx(bits, abs=5e-4)


@pytest.mark.parametrize(("kind", "most"), [("int8", 1e-3), ("nf4", 2e-2)])
def test_a_quantised_folder_reloads_and_is_near_the_model(
    model_folder: Path, tmp_path: Path, kind: quantisation.Kind, most: float
) -> None:
    quantisation.write_bitsandbytes(model_folder, tmp_path / kind, kind, 6.0, ["lm_head"])
    reference = load_policy(model_folder)
    error, mean = weight_error(dict(reference.state_dict()), dequantised(tmp_path / kind))
    assert 0 < mean < error < most
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = load_policy(tmp_path / kind)(ids).logits
        assert (found - reference(ids).logits).abs().max() < 20 * most
    again = tmp_path / "again"
    quantisation.write_bitsandbytes(model_folder, again, kind, 6.0, ["lm_head"])
    for file in again.iterdir():
        assert file.read_bytes() == (tmp_path / kind / file.name).read_bytes()


def test_four_bits_stay_four_bits_on_a_cpu_with_bf16_instructions(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There bitsandbytes would repack the weights in the first forward pass, compute in bf16, and save other scales."""
    import bitsandbytes

    def repack(*_: object) -> None:
        raise AssertionError("the weights are repacked")

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", repack)
    quantisation.write_bitsandbytes(model_folder, tmp_path / "nf4", "nf4", 6.0, ["lm_head"])
    model = load_policy(tmp_path / "nf4")
    with torch.no_grad():
        model(torch.arange(20)[None])
    kept = model.state_dict()
    for name, tensor in load_file(tmp_path / "nf4" / "model.safetensors").items():
        assert torch.equal(kept[name], tensor), name
    with torch.no_grad():
        load_quantised(model_folder)(torch.arange(20)[None])


def test_native_code_of_the_hub_is_out_of_reach() -> None:
    """bitsandbytes asks for it when it is imported, on some CPUs, if the package `kernels` is there."""
    program = (
        "import sys, types; sys.modules.pop('kernels', None); import tasks, importlib.util\n"
        "print(importlib.util.find_spec('kernels'), 'kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "True"]
