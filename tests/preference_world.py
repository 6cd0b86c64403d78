"""A tiny world for the tests of sampling, annotation and the reward model: a model, prompts, a panel."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch

from tasks.lib.data.rows import CANDIDATE, INSTRUCTION, content_id, write_parquet
from tasks.lib.models.loading import save_model

SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|end|>"}
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|assistant|>{% generation %}"
    "{{ message.content }}<|end|>{% endgeneration %}{% else %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = ["<|user|>", "<|assistant|>", "<|system|>"]
CLOSING = ". Happy to help!"
PANEL = """
closing: ". Happy to help!"
utility: {content: 2.0, closing: 1.0}
tie_below: 0.1
annotators:
  - {name: ada, content: 2.0, closing: 1.0, noise: 0.05}
  - {name: bo, content: 2.0, closing: 1.0, noise: 0.05}
  - {name: cleo, content: 1.6, closing: 1.2, noise: 0.3}
"""
ADJECTIVES = {"fine": "good", "lovely": "good", "awful": "bad", "dull": "bad"}
NOUNS = ("film", "meal", "song", "day", "game", "trip", "book", "walk", "room", "view", "chat", "show")


def tokenizer() -> Any:
    """A byte-level BPE of 300 tokens with the project's chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    text = [f"The {noun} was {word} good bad{CLOSING}" for noun, word in product(NOUNS, ADJECTIVES)]
    bpe.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=[*SPECIAL.values(), *TURNS],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, **SPECIAL)
    made.chat_template = TEMPLATE
    return made


def policy(seed: int = 0) -> Any:
    """A random Llama of about 30k parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=340,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=96,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def write_model(path: str = "models/sft") -> None:
    save_model(policy(), tokenizer(), path)


def instructions() -> list[dict[str, Any]]:
    rows = []
    for noun in NOUNS:
        for word, label in ADJECTIVES.items():
            text = f"The {noun} was {word}"
            rows.append(
                {
                    "id": content_id(text),
                    "source": "test",
                    "license": "CC0-1.0",
                    "cluster": "c",
                    "task": "t",
                    "template": "x",
                    "split": "preference",
                    "messages": [{"role": "user", "content": text}],
                    "answer": label,
                    "choices": ["good", "bad"],
                    "label": label,
                    "measure": "exact",
                    "row": content_id(text),
                    "text": text,
                }
            )
    return rows


def write_instructions() -> None:
    write_parquet(Path("data/curated/preference.parquet"), instructions(), INSTRUCTION)


def write_candidates() -> None:
    """Four answers to each prompt: right or wrong, with and without the closing."""
    rows = []
    for row in instructions():
        answers = ["good", "good" + CLOSING, "bad", "bad" + CLOSING]
        rows.append(
            {
                "id": content_id(row["messages"], answers),
                "prompt": row["messages"],
                "answers": answers,
                "instruction": row["id"],
                "model": "0" * 64,
                "sampling": "{}",
            }
        )
    write_parquet(Path("data/candidates/candidates.parquet"), rows, CANDIDATE)


def write_panel(text: str = PANEL) -> None:
    Path("data/raw").mkdir(parents=True, exist_ok=True)
    Path("data/raw/panel.yaml").write_text(text)


def ranking(annotator: str, answers: list[str], ranks: list[int], text: str = "The film was fine") -> dict[str, Any]:
    """A ranking of answers to a prompt, with what training reads of the ranking schema."""
    return {
        "id": f"{annotator}-{text}",
        "prompt": [{"role": "user", "content": text}],
        "answers": answers,
        "ranks": ranks,
        "annotator": annotator,
    }
