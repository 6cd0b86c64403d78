"""A sequence classifier of transformers on the body of a model: a decoder, or an encoder such as a masked LM.

What is saved is an ordinary AutoModelForSequenceClassification folder; its labels are in config.json. A regression
has one output in standard deviations of its training targets: `target_mean` and `target_std` of config.json give
units back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tasks.lib.finetuning.lora import lora_config, refuse_modules
from tasks.lib.models.batches import batches_by_length, right_pad
from tasks.lib.models.chat import load_tokenizer
from tasks.lib.models.loading import load_partial, turn_off_dropout
from tasks.lib.settings.methods import HeadMethod
from tasks.lib.stage import Problem


def load_classifier(path: Path, labels: Sequence[str], method: HeadMethod, seed: int) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer and the names of the new weights, for `labels` (none: a regression), on `device()`.

    The body comes from the folder, a head of another task is replaced, new weights depend on `seed` alone. Problem
    when a weight of the body is missing: transformers would fill it with random numbers without a word.
    """
    tokenizer = load_tokenizer(path, ends=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    names = dict(enumerate(labels)) or {0: "value"}

    def configure(config: Any) -> None:
        config.id2label, config.label2id = names, {name: number for number, name in names.items()}
        config.problem_type = "single_label_classification" if labels else "regression"
        config.pad_token_id = tokenizer.pad_token_id  # a decoder reads the last token that is not this one
        if method == "head":
            turn_off_dropout(config)  # fixed features are the same ones in every epoch

    torch.manual_seed(seed)
    model, lacking = load_partial(path, AutoModelForSequenceClassification, configure=configure, dtype=torch.float32)
    body = f"{model.base_model_prefix}."
    for name in lacking:
        is_pooler = "pooler" in name.split(".")  # BERT's, for a head: no masked LM trains it
        if name.startswith(body) and not is_pooler:
            raise Problem(f"{path}: the tensor {name} is missing; it would be random: restore the folder")
    head = {name for name, _ in model.named_parameters() if not name.startswith(body)}
    return model, tokenizer, sorted(head.union(lacking))


def prepare_classifier(model: Any, method: HeadMethod, lora: Mapping[str, Any], new: Sequence[str]) -> Any:
    """The model with only what `method` trains left to train: all weights, low-rank updates and what is `new`, or
    what is new alone, on fixed features. Problem for a bad field of `lora`."""
    if method == "lora":
        from peft import get_peft_model

        modules = sorted({name.rpartition(".")[0] for name in new})
        config = lora_config(
            "classify.lora", lora, task_type="SEQ_CLS", modules_to_save=modules, exclude_modules=modules
        )
        refuse_modules("classify.lora", config, model)
        return get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or name in new)
    return model


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts as the model's own tokenizer frames them. A special token's name in a text is plain text."""
    return list(tokenizer(list(texts), split_special_tokens=True)["input_ids"])


def room(model: Any) -> int | None:
    """The most tokens that the model takes; None if nothing limits it."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if not longest:
        return None
    skipped = 0
    for name, module in model.named_modules():
        pad_id = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and pad_id is not None:
            skipped = max(skipped, pad_id + 1)  # RoBERTa counts positions from behind its pad id
    return int(longest - skipped)


def collator_of_texts(pad_id: int) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """Rows {input_ids, labels} as a batch (B, T), padded on the right whatever a tokenizer's settings are: absolute
    positions begin at the first token."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids, is_token = right_pad([row["input_ids"] for row in rows], pad_id)
        labels = torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": is_token.long(), "labels": labels}

    return collate


def summed_loss(smoothing: float = 0.0) -> Callable[..., Tensor]:
    """Cross-entropy of class numbers (B,), squared error of float targets (B,); the mean over the effective batch.

    The models' own loss is the mean of a batch, which a Trainer does not divide when it accumulates gradients of
    a model that takes further arguments.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs.logits.float()
        if labels.is_floating_point():
            total = nn.functional.mse_loss(logits[:, 0], labels, reduction="sum")
        else:
            total = nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


@torch.no_grad()
def predicted(model: Any, sequences: Sequence[Sequence[int]], *, batch_size: int) -> Tensor:
    """Outputs (N, labels) of token sequences in their order, from batches of like length, on the CPU."""
    model.eval()
    outputs = torch.empty(len(sequences), model.config.num_labels)
    for batch in batches_by_length([len(ids) for ids in sequences], batch_size, longest_first=True):
        ids, is_token = right_pad([sequences[i] for i in batch], model.config.pad_token_id)
        logits = model(input_ids=ids.to(model.device), attention_mask=is_token.long().to(model.device)).logits
        outputs[batch] = logits.float().cpu()
    return outputs
