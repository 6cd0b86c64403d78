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


def write_gguf(model: PreTrainedModel, tokenizer: Any, path: Path, precision: str, name: str) -> list[str]:
    """Write the model's matrices in `precision` (f16, bf16, q8_0: gguf.GGMLQuantizationType in small letters).

    Returns a line per matrix that had to stay wider. Vectors stay f32. Raises Problem for a model or a tokenizer that
    llama.cpp would run differently.
    """
    refuse_unsupported(model.config)
    vocabulary = describe(tokenizer, model.config.vocab_size)
    tensors, notes = _quantised(model, gguf.GGMLQuantizationType[precision.upper()])
    with replaced(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{precision.upper()}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model.config)
        _add_vocabulary(writer, vocabulary)
        for tensor, data, dtype in tensors:
            writer.add_tensor(tensor, data, raw_dtype=dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return notes


def refuse_unsupported(config: Any) -> None:
    """Raise Problem for a model with parts that the GGUF architecture `llama` has no place for."""
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    reason = None
    if config.model_type != "llama":
        reason = f"model_type {config.model_type}"
    elif config.attention_bias or config.mlp_bias:
        reason = "biases"
    elif config.hidden_act != "silu":
        reason = f"activation {config.hidden_act}"
    elif rope_type != "default":
        reason = f"rope type {rope_type}"
    if reason:
        raise Problem(f"gguf: only plain Llama models are written, this one has {reason}; "
                      "take gguf out of quantize.formats")  # fmt: skip


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
        index = getattr(vocabulary, word)
        if index is not None:
            getattr(writer, f"add_{word}_token_id")(index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _quantised(
    model: PreTrainedModel, precision: gguf.GGMLQuantizationType
) -> tuple[list[tuple[str, np.ndarray, gguf.GGMLQuantizationType]], list[str]]:
    """(name, bytes, type) per tensor in the file's order; a line per matrix that `precision` does not suit."""
    config, notes, tensors = model.config, [], []
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for source, weight in model.state_dict().items():
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp falls back to token_embd
        target = names.get_name(source, try_suffixes=(".weight",))
        if target is None:
            raise Problem(f"gguf: llama.cpp has no name for the tensor {source}; merge adapters first")
        data = _permuted(source, weight.detach().float().cpu().numpy(), config)
        dtype = precision if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        block = gguf.GGML_QUANT_SIZES[dtype][0]  # weights that share a scale
        if data.shape[-1] % block:
            notes.append(f"{target}: rows of {data.shape[-1]} are not a multiple of {block}; kept as F16")
            dtype = gguf.GGMLQuantizationType.F16
        tensors.append((target, gguf.quants.quantize(np.ascontiguousarray(data), dtype), dtype))
    return tensors, notes


def _permuted(name: str, data: np.ndarray, config: Any, undo: bool = False) -> np.ndarray:
    """Reorder the rows (heads * head_dim, hidden) of q and k within each head: (half, pair) <-> (pair, half)."""
    if name.endswith("q_proj.weight"):
        heads = config.num_attention_heads
    elif name.endswith("k_proj.weight"):
        heads = config.num_key_value_heads
    else:
        return data
    pairs = data.shape[0] // heads // 2
    inner = (pairs, 2) if undo else (2, pairs)
    return data.reshape(heads, *inner, data.shape[1]).swapaxes(1, 2).reshape(data.shape)


def read_gguf(path: Path) -> LlamaForCausalLM:
    """The model of a GGUF file of the Llama family, its weights dequantised to f32.

    Everything comes from the file, so that parity judges what an engine would see.
    """
    reader, keys = _opened(path)
    if not reader.tensors or keys.get("general.architecture") != "llama":
        raise Problem(f"{path} holds no Llama model; it cannot be loaded")
    stored = {}
    for tensor in reader.tensors:
        stored[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    config = _config(keys, tied="output.weight" not in stored)
    model = LlamaForCausalLM(config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for target in model.state_dict():
        if target == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = stored[str(names.get_name(target, try_suffixes=(".weight",)))]
        weights[target] = torch.tensor(_permuted(target, data, config, undo=True), dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval()


def _opened(path: Path) -> tuple[gguf.GGUFReader, dict[str, Any]]:
    """The reader of a file, and the file's keys with their values."""
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise Problem(f"{path} is not a readable GGUF file ({error}); write it again") from None
    return reader, {name: field.contents() for name, field in reader.fields.items()}


def _config(keys: dict[str, Any], tied: bool) -> LlamaConfig:
    return LlamaConfig(
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
        tie_word_embeddings=tied,
        bos_token_id=keys.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=keys.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=keys.get("tokenizer.ggml.padding_token_id"),
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file, of a model or without one."""
    _, keys = _opened(path)

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
