"""Llama-family models as GGUF files, written and read back with PyPI `gguf`.

The layout is llama.cpp's (convert_hf_to_gguf.py, class LlamaModel): names by `get_tensor_name_map`, rows of
q and k permuted because llama.cpp rotates neighbouring pairs where transformers rotates halves.
The same model gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tasks.lib.export.gguf_vocabulary import Vocabulary, describe
from tasks.lib.stage import Problem, replaced

TYPES = {"f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
FILE_TYPES = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}


def write_gguf(model: PreTrainedModel, tokenizer: Any, path: Path, kind: str, name: str) -> list[str]:
    """Write the model as `kind` (f16 or q8_0) and return a line per tensor that had to stay wider.

    Vectors stay f32. Raises Problem for a model or a tokenizer that llama.cpp would run differently.
    """
    config = _supported(model.config)
    vocabulary = describe(tokenizer, config.vocab_size)
    tensors, notes = _quantised(model, TYPES[kind])
    with replaced(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        _add_vocabulary(writer, vocabulary)
        for tensor, data, dtype in tensors:
            writer.add_tensor(tensor, data, raw_dtype=dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return notes


def _supported(config: Any) -> Any:
    rope = getattr(config, "rope_parameters", None) or {}
    reasons = {
        f"model_type {config.model_type}": config.model_type != "llama",
        "biases": config.model_type == "llama" and (config.attention_bias or config.mlp_bias),
        f"activation {getattr(config, 'hidden_act', None)}": getattr(config, "hidden_act", None) != "silu",
        f"rope type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise Problem(
            f"gguf: only plain Llama models are written, this one has {found[0]}; take gguf out of quantize.formats"
        )
    return config


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for word in ("bos", "eos", "pad", "unk"):
        if (index := getattr(vocabulary, word)) is not None:
            getattr(writer, f"add_{word}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _quantised(
    model: PreTrainedModel, wanted: gguf.GGMLQuantizationType
) -> tuple[list[tuple[str, np.ndarray, gguf.GGMLQuantizationType]], list[str]]:
    """(name, bytes, type) per tensor in the file's order; a line per matrix that `wanted` does not suit."""
    config, notes, tensors = model.config, [], []
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for source, weight in model.state_dict().items():
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp falls back to token_embd
        target = names.get_name(source, try_suffixes=(".weight",))
        if target is None:
            raise Problem(f"gguf: llama.cpp has no name for the tensor {source}; merge adapters first")
        data = _permuted(source, weight.detach().float().cpu().numpy(), config)
        dtype = wanted if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        block = gguf.GGML_QUANT_SIZES[dtype][0]
        if data.shape[-1] % block:
            notes.append(f"{target}: rows of {data.shape[-1]} do not divide by {block}; kept as F16")
            dtype = gguf.GGMLQuantizationType.F16
        tensors.append((target, gguf.quants.quantize(np.ascontiguousarray(data), dtype), dtype))
    return tensors, notes


def _permuted(name: str, data: np.ndarray, config: Any, undo: bool = False) -> np.ndarray:
    """Reorder the rows of q and k within each head: (half, pair) <-> (pair, half)."""
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    count = next((count for suffix, count in heads.items() if name.endswith(suffix)), None)
    if count is None:
        return data
    pair = data.shape[0] // count // 2
    inner = (pair, 2) if undo else (2, pair)
    return data.reshape(count, *inner, data.shape[1]).swapaxes(1, 2).reshape(data.shape)


def read_gguf(path: Path) -> tuple[LlamaForCausalLM, Vocabulary]:
    """Read a GGUF file of the Llama family: the model with dequantised f32 weights, and its vocabulary.

    Everything comes from the file, so that parity judges what an engine would see.
    """
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise Problem(f"{path} is not a readable GGUF file ({error}); write it again") from None
    keys = {name: field.contents() for name, field in reader.fields.items()}
    if not reader.tensors or keys.get("general.architecture") != "llama":
        raise Problem(f"{path} holds no Llama model; it cannot be loaded")
    config = LlamaConfig(
        vocab_size=keys["llama.vocab_size"],
        max_position_embeddings=keys["llama.context_length"],
        hidden_size=keys["llama.embedding_length"],
        num_hidden_layers=keys["llama.block_count"],
        intermediate_size=keys["llama.feed_forward_length"],
        num_attention_heads=keys["llama.attention.head_count"],
        num_key_value_heads=keys["llama.attention.head_count_kv"],
        head_dim=keys["llama.rope.dimension_count"],
        rms_norm_eps=keys["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": keys["llama.rope.freq_base"]},
        tie_word_embeddings="output.weight" not in [tensor.name for tensor in reader.tensors],
        bos_token_id=keys.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=keys.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=keys.get("tokenizer.ggml.padding_token_id"),
    )
    model = LlamaForCausalLM(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    data = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = {}
    for target in model.state_dict():
        if target == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = data[str(names.get_name(target, try_suffixes=(".weight",)))]
        weights[target] = torch.tensor(_permuted(target, stored, config, undo=True), dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval(), _read_vocabulary(keys)


def _read_vocabulary(keys: dict[str, Any]) -> Vocabulary:
    def key(name: str, default: Any = None) -> Any:
        return keys.get(f"tokenizer.ggml.{name}", default)

    return Vocabulary(
        model=key("model"),
        pre=key("pre"),
        tokens=key("tokens"),
        types=key("token_type"),
        merges=key("merges", []),
        scores=key("scores", []),
        bos=key("bos_token_id"),
        eos=key("eos_token_id"),
        pad=key("padding_token_id"),
        unk=key("unknown_token_id"),
        adds_bos=key("add_bos_token", False),
        adds_space=key("add_space_prefix", False),
        chat_template=keys.get("tokenizer.chat_template"),
    )
