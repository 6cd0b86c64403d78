"""A tiny chat model and its tokenizer, made in milliseconds, and the rows to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import INSTRUCTION, RANKING, content_id, write_parquet
from tasks.lib.finetuning.pretraining import new_llama, train_tokenizer
from tasks.lib.models.loading import save_model

WORDS = ["red", "blue", "green", "small", "large", "round", "old", "new", "fast", "slow", "warm", "cold"]


def tiny_tokenizer() -> Any:
    return train_tokenizer([f"Say the word {word}. {word}" for word in WORDS], 300)


def tiny_llama(tokenizer: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return new_llama(tokenizer, hidden=16, layers=2, heads=2, feed_forward=32, context=64, rope_theta=100.0)


def write_model(path: Path, seed: int = 0) -> Any:
    tokenizer = tiny_tokenizer()
    save_model(tiny_llama(tokenizer, seed), tokenizer, path)
    return tokenizer


def files(folder: Path) -> dict[str, bytes]:
    """Name and content of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def instruction(number: int) -> dict[str, Any]:
    words = [WORDS[number % 12], WORDS[(number * 7 + 3) % 12]]
    prompt, answer = f"Say the first word {' '.join(words[: 1 + number % 2])}", words[0]
    return {
        "id": content_id(prompt, number), "source": "tiny", "license": "CC0-1.0", "cluster": "copy",
        "task": "first", "template": "say", "split": "train", "answer": answer, "label": answer,
        "measure": "exact",
        "messages": [{"role": "user", "content": prompt}], "choices": None, "row": content_id(prompt),
        "text": prompt,
    }  # fmt: skip


def ranking(number: int, annotator: str = "ada") -> dict[str, Any]:
    words = [WORDS[(number + k) % 12] for k in range(3)]
    prompt = [{"role": "user", "content": f"Say the word {words[0]} or {words[1]}"}]
    return {
        "id": content_id(prompt, annotator, number), "prompt": prompt, "answers": words, "ranks": [0, 1, 2],
        "annotator": annotator, "strength": None, "source": "tiny", "license": "CC0-1.0",
    }  # fmt: skip


def write_instructions(path: Path, numbers: range) -> None:
    write_parquet(path, [instruction(number) for number in numbers], INSTRUCTION)


def write_rankings(path: Path, numbers: range) -> None:
    write_parquet(path, [ranking(number) for number in numbers], RANKING)


def write_encoder(path: Path, kind: str, seed: int = 0) -> None:
    """A masked language model and its WordPiece tokenizer: kind is bert or roberta."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

    letters = [chr(number) for number in range(33, 127)]
    names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]"}  # fmt: skip
    shape = {"vocab_size": len(names), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 1,
             "initializer_range": 0.3}  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **shape))
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
