"""Causal language modelling on plain text: the tiny model's tokenizer and pre-training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.lib.stage import Problem
from tasks.lib.training.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from tasks.lib.training.muon import Muon

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

# A space stands before every content, because "Mia" and " Mia" are different tokens to a byte-level BPE:
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
    ids = [i for document in encoded for i in (*document, tokenizer.eos_token_id)]
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


def learning_rate_at(step: int, steps: int, warmup: int) -> float:
    """The share of the peak rate: linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def pretrain(
    model: Any,
    ids: Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup: int,
    seed: int,
    checkpoint: Checkpoint,
    save_every: int,
    progress: Callable[..., None],
) -> list[dict[str, float]]:
    """Train on random blocks of ids (N, T) in place; the log of losses. Goes on from the checkpoint if there is one.

    Problem when the loss is not finite, before the weights are touched.
    """
    parameters = dict(model.named_parameters())
    optimizer = Muon(model, learning_rate)
    first, log = 0, list[dict[str, float]]()
    if (found := checkpoint.load()) is not None:
        first, tensors, log = found
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"model.{name}"])
        restore_optimizer(optimizer, tensors)
        print(f"base: goes on from step {first}", flush=True)
    model.train()
    for step in range(first, steps):
        # the batch depends on seed and step alone, so that a resumed run draws the same ones
        chance = torch.Generator().manual_seed(seed + step)
        batch = ids[torch.randint(len(ids), (batch_size,), generator=chance)].to(model.device)
        loss = next_token_loss(model, batch)
        if not torch.isfinite(loss):
            raise Problem(f"base: the loss is {loss.item()} at step {step + 1}; lower base.pretraining.learning_rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_at(step, steps, warmup)
        optimizer.step()
        optimizer.zero_grad()
        log.append({"step": step + 1, "loss": loss.item()})
        progress(step + 1, steps, loss=loss.item())
        if (step + 1) % save_every == 0 and step + 1 < steps:
            weights = {f"model.{name}": parameter for name, parameter in parameters.items()}
            checkpoint.save(step + 1, weights | optimizer_tensors(optimizer), log)
    return log
