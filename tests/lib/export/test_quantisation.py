"""int8 keeps outliers apart, NF4 costs 4.127 bits, integer grids err by at most half a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.lib.export import quantisation
from tasks.lib.export.quantisation import dequantised, quantised_bits, read_model, weight_error
from tasks.lib.policy.models import save_model


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


def test_int8_with_an_outlier_column_needs_the_decomposition() -> None:
    """LLM.int8(): one activation of 60 spoils the scale of its row unless its column stays 16-bit."""
    quantisation.quiet()
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
    reference = read_model(model_folder)
    error, mean = weight_error(dict(reference.state_dict()), dequantised(tmp_path / kind))
    assert 0 < mean < error < most
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = read_model(tmp_path / kind)(ids).logits
        assert (found - reference(ids).logits).abs().max() < 20 * most
    again = tmp_path / "again"
    quantisation.write_bitsandbytes(model_folder, again, kind, 6.0, ["lm_head"])
    for file in again.iterdir():
        assert file.read_bytes() == (tmp_path / kind / file.name).read_bytes()
