"""Causal language modelling on plain text: the tiny model's tokenizer, its weights, and pre-training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.lib.settings.base import Pretraining
from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint
from tasks.lib.training.loop import train_steps, warmup_then_cosine
from tasks.lib.training.muon import Muon

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# A space is put before every content, because "Mia" and " Mia" are different tokens to a byte-level BPE:
# what the model copies from a prompt has to be the token that the prompt holds.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ ' ' + message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|> ' + message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(lines: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (GPT-2's splitting) of `vocab_size` tokens with the chat's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def new_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden: int,
    layers: int,
    heads: int,
    feed_forward: int,
    context: int,
    rope_theta: float,
) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings for this tokenizer."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=context,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def documents(path: Path) -> list[str]:
    """The documents of a text file, one a line."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise Problem(f"{path} does not exist; name a text file in params.yaml: base.text") from None
    except UnicodeDecodeError as error:
        raise Problem(f"{path}: not UTF-8 text, byte {error.start}; convert it") from None


def blocks(path: Path, tokenizer: Any, length: int) -> Tensor:
    """The text as (N, length) token ids; each document ends with EOS."""
    encoded = tokenizer(documents(path), add_special_tokens=False)["input_ids"]
    ids: list[int] = []
    for document in encoded:
        ids += [*document, tokenizer.eos_token_id]
    usable = len(ids) // length * length
    return torch.tensor(ids[:usable], dtype=torch.long).view(-1, length)


def next_token_loss(model: Any, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of ids (B, T), each token but the first predicted from those before it."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, batch_size: int = 64) -> float:
    """exp of the mean loss over blocks (N, T)."""
    model.eval()
    losses = [next_token_loss(model, batch) * len(batch) for batch in ids.split(batch_size)]
    return float(torch.exp(torch.stack(losses).sum() / len(ids)))


def pretrain(
    model: Any, ids: Tensor, how: Pretraining, *, seed: int, checkpoint: Checkpoint, progress: Callable[..., None]
) -> list[dict[str, float]]:
    """Train in place on random blocks of ids (N, T), by Muon; the loss of every step. Resumed and stopped as
    `train_steps` says."""

    def backward(step: int) -> tuple[Tensor, dict[str, float]]:
        chance = torch.Generator().manual_seed(seed + step)  # a resumed run draws the same blocks
        batch = ids[torch.randint(len(ids), (how.batch_size,), generator=chance)]
        loss = next_token_loss(model, batch.to(model.device))
        loss.backward()
        return loss.detach(), {}

    model.train()
    return train_steps(
        "base",
        model,
        Muon(model, how.learning_rate),
        backward,
        steps=how.steps,
        rate_at=lambda step: how.learning_rate * warmup_then_cosine(step, how.steps, how.warmup),
        max_grad_norm=1.0,
        checkpoint=checkpoint,
        save_every=how.save_every,
        progress=progress,
        advice=lambda step: "lower base.pretraining.learning_rate",
    )
