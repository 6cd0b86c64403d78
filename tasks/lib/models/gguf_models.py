"""A GGUF file of llama.cpp as a model of transformers."""

from __future__ import annotations

from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tasks.lib.models.loading import turn_off_dropout
from tasks.lib.models.model_folder import first_line
from tasks.lib.stage import Problem


def load_gguf(path: Path) -> tuple[Any, Any, str]:
    """Model in float32 on the CPU, tokenizer, and in which types the file stores its matrices, most numbers first
    (`Q4_1, Q6_K`). Problem for a file that is damaged, holds a vocabulary only, or a model transformers cannot read."""
    stored = stored_types(path)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        with redirect_stderr(StringIO()):  # a progress bar that no setting turns off
            read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        config = AutoConfig.from_pretrained(**where)
        # The weights are plain numbers now. A model that says otherwise cannot be saved.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        turn_off_dropout(config)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
    except Exception as error:  # ValueError for an unknown architecture, KeyError for a lacking field, and others
        raise Problem(f"{path.name}: transformers cannot read this GGUF file: {first_line(error)}") from None
    return model.eval(), tokenizer, stored


def stored_types(path: Path) -> str:
    """The types of the file's matrices, most numbers first."""
    import gguf

    try:
        tensors = gguf.GGUFReader(path).tensors
    except Exception as error:  # a reader of bytes: ValueError, IndexError, KeyError, UnicodeDecodeError, ...
        raise Problem(f"{path.name}: not a GGUF file, or damaged: {first_line(error)}; download it again") from None
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:
            numbers[tensor.tensor_type.name] += int(tensor.n_elements)
    if not numbers:
        raise Problem(f"{path.name}: holds a vocabulary, but no model; take the file with the weights")
    return ", ".join(name for name, _ in numbers.most_common())
