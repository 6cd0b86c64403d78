"""Log-probabilities of the reference, computed once: kept in a file that is named after all they depend on.

TRL keeps them in the cache of `datasets`, which for rows in memory ends with the process.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tasks.lib.stage import replaced

FOLDER = Path(".anneal/reference")
SIDES = ("chosen", "rejected")


def with_reference_cache(Base: Any) -> Any:
    """The trainer class `Base` (trl.DPOTrainer with precompute_ref_log_probs) that looks into `FOLDER` first.

    `reference` is what the log-probabilities depend on besides the pairs: at least the hash of the reference's weights.
    """

    class ReferenceCacheTrainer(Base):
        def __init__(self, *, reference: Mapping[str, Any], **settings: Any) -> None:
            self.reference = reference
            super().__init__(**settings)

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            """TRL calls it once per set before training."""
            from accelerate.utils import broadcast_object_list

            state = self.accelerator
            facts = {**self.reference, "batch_size": batch_size, "processes": state.num_processes}
            facts["precision"] = str(state.mixed_precision)
            file = FOLDER / f"{key_of(dataset, facts)}.safetensors"
            logps = [_read(file, len(dataset)) if state.is_main_process else None]
            broadcast_object_list(logps, from_process=0)
            if logps[0] is None:
                dataset = super()._precompute_ref_logps(dataset, name, batch_size)
                if state.is_main_process:
                    _write(file, dataset)
                return dataset
            print(f"dpo: reference log-probabilities of {len(dataset)} pairs from {file}", flush=True)
            for side in SIDES:
                dataset = dataset.add_column(f"ref_{side}_logps", logps[0][side])
            return dataset

    return ReferenceCacheTrainer


def key_of(dataset: Any, facts: Mapping[str, Any]) -> str:
    """32 hex digits of the ids of all pairs, of `facts`, and of what rounds: torch, its threads, the device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    machine = [torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), device]
    digest = hashlib.sha256(json.dumps([dict(facts), machine], sort_keys=True).encode())
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        for ids in dataset[column]:
            digest.update(array("q", [len(ids), *ids]).tobytes())
    return digest.hexdigest()[:32]


def _write(file: Path, dataset: Any) -> None:
    columns: dict[str, Any] = {}
    for side in SIDES:
        columns[side] = numpy.asarray(dataset[f"ref_{side}_logps"], dtype=numpy.float32)
    with replaced(file) as temporary:
        save_file(columns, temporary)


def _read(file: Path, count: int) -> dict[str, Any] | None:
    """The log-probabilities of both sides, (count,) each; None if the file is missing, damaged or of other pairs."""
    try:
        columns = load_file(file)
    except (OSError, SafetensorError):
        return None
    for side in SIDES:
        if len(columns.get(side, ())) != count:
            return None
    return columns
