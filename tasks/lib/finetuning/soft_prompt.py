"""Prompt tuning (arXiv 2104.08691): the embeddings of new tokens before every conversation.

The soft prompt is made of tokens of the vocabulary: engines without adapters serve it, and padding on the left stays
without effect.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from tasks.lib.stage import Problem

# a chat template that writes the BOS first, after the settings that `base` may have put there
BEGINS = re.compile(r"^(\s*\{%-?\s*(if|set|endif)\b((?!%\}).)*%\})*\s*\{\{-?\s*bos_token\s*-?\}\}")


def with_soft_prompt(model: Any, tokenizer: Any, count: int) -> Any:
    """The model with `count` new tokens, the only ones that are trained; the tokenizer's template writes them first.

    They start as embeddings of tokens that are there (section 2). The output layer learns its rows of them too, or they
    might be sampled. The gradient of every other row is 0, which AdamW without weight decay leaves where it is.
    """
    known = len(tokenizer)
    _add_tokens(tokenizer, count)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    copied = torch.randint(known, (count,))
    model.requires_grad_(False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = layer.weight
        with torch.no_grad():
            weight[known : known + count] = weight[copied.to(weight.device)]
        if not weight.requires_grad:  # tied weights are one
            is_new = torch.zeros(len(weight), 1, device=weight.device)
            is_new[known : known + count] = 1
            weight.requires_grad_(True).register_hook(is_new.mul)
            weight.trained = count * weight.shape[1]
    return model


def _add_tokens(tokenizer: Any, count: int) -> None:
    """Add the tokens to the vocabulary, and to the template where it begins, after the BOS."""
    from tokenizers import AddedToken

    names = [f"<|soft_{number}|>" for number in range(count)]
    added = tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if added != count:
        raise Problem(f"the tokenizer has {names[0]} already: the model has a soft prompt; start from its base")
    template = tokenizer.chat_template
    bos = BEGINS.match(template)
    start = bos.end() if bos else 0
    tokenizer.chat_template = template[:start] + "".join(names) + template[start:]
