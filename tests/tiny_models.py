"""A tiny chat model and its tokenizer, made in milliseconds, and the rows to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import INSTRUCTION, RANKING, content_id, write_parquet
from tasks.lib.policy.models import save_model
from tasks.lib.policy.pretraining import new_llama, train_tokenizer

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


def instruction(number: int) -> dict[str, Any]:
    words = [WORDS[number % 12], WORDS[(number * 7 + 3) % 12]]
    prompt, answer = f"Say the first word {' '.join(words[: 1 + number % 2])}", words[0]
    return {
        "id": content_id(prompt, number), "source": "tiny", "license": "CC0-1.0", "cluster": "copy",
        "task": "first", "template": "say", "split": "train", "answer": answer, "label": answer,
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
