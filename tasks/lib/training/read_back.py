"""What is written is what was trained: a model folder is read back and compared with the model that was in memory.

A stage measures its model before it saves it, and again after reading it back. Merging adapters, weights that two
layers share, and settings that a library changed for training may all make another model of it without a word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tasks.lib.models.loading import load_policy
from tasks.lib.models.precision import kept_dtype
from tasks.lib.stage import Problem
from tasks.lib.training.distributed import is_sharded

ROWS = 8  # are enough: what goes wrong changes every row
ROUNDING = 1e-3  # nats per token, or units of a raw reward: what merging in float32 may change
IN_16_BITS = 0.02  # the same, where weights or passes are in 16 bits
# what every stage sets, or the weights decide
OWN = {"architectures", "dtype", "transformers_version", "_name_or_path", "bos_token_id", "eos_token_id",
       "pad_token_id", "tie_word_embeddings"}  # fmt: skip


def rounding(config: Any) -> float:
    """Nats per token that rounding may change after training by this configuration: more where it is in 16 bits."""
    return IN_16_BITS if config.bf16 or config.fp16 else ROUNDING


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Nats per token of the first rows of token ids, each in a pass of its own: no padding, no dropout."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for row in rows[:ROWS]:
        ids = torch.tensor(row, device=model.device)
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        count += len(row) - 1
    model.train(was_training)
    return total / count


def save_as_trained(
    save: Callable[[], None],
    path: Path,
    model: Any,
    rows: Sequence[Sequence[int]],
    base: Path,
    *,
    meant: Collection[str] = (),
    tolerance: float = ROUNDING,
    read_on: Any = None,
) -> None:
    """Call `save`, which writes the trained `model` as the folder `path`, and check what it wrote.

    The configuration gets the values of the folder `base` again, but for the keys that are `meant` to differ: TRL and
    transformers change it for training (use_cache, output_router_logits of a mixture of experts). `rows` of token ids
    measure the loss. The folder is read on the model's device, or the one given. A model that is spread over processes
    is saved unchecked, since it may be too large to be there twice.
    """
    for key in _differing(model.config, base, meant):
        setattr(model.config, key, getattr(_config(base), key))
    if is_sharded():
        save()
        return
    place = model.device if read_on is None else read_on
    trained = mean_loss(model, rows)
    save()
    check_read_back(
        path, trained, lambda: mean_loss(load_policy(path, on=place), rows), base, meant=meant, tolerance=tolerance
    )


def check_read_back(
    path: Path,
    trained: float,
    read: Callable[[], float],
    base: Path | None = None,
    *,
    meant: Collection[str] = (),
    tolerance: float = ROUNDING,
) -> None:
    """Remove the folder and raise a Problem if what is read back is not what was trained.

    `trained` is a figure of the trained model, `read()` that of the folder. The folder's configuration has to be that
    of `base`, if one is given, but for the keys that are `meant` to differ.
    """
    found, wrong = read(), ""
    if kept_dtype(path) == torch.bfloat16:
        tolerance = max(tolerance, IN_16_BITS * (1 + abs(trained)))
    if not abs(found - trained) <= tolerance:  # not more: also when it is NaN
        wrong = f"{found:.4g} where the trained model has {trained:.4g} (loss per token, or reward)"
    elif base is not None:
        for key in _differing(_config(path), base, meant)[:1]:
            wrong = f"{key}: {getattr(_config(path), key, None)}, its base {getattr(_config(base), key)}"
    if wrong:
        shutil.rmtree(path)
        raise Problem(
            f"{path}: removed, for it is not what was trained: read back it has {wrong}; leave out unusual fields of "
            "the trainer and the adapter, and report this"
        )


def _config(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _differing(config: Any, base: Path, meant: Collection[str]) -> list[str]:
    """Keys of the configuration of the folder `base` that have another value in `config`."""
    found, below = config.to_dict(), _config(base).to_dict()
    return [key for key in below if key not in OWN and key not in meant and found.get(key) != below[key]]
