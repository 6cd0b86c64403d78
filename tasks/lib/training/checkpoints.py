"""Checkpoints that survive `kill -9` at any moment and refuse to go on with other parameters.

A checkpoint of our own loops is one safetensors file, renamed into place: it is whole or it is not there.
Checkpoints of the Hugging Face Trainer are folders of many files: a marker, written last, says it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

MARKER = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """The latest state of one run. `fingerprint` (parameters, input hashes) must be equal for going on."""

    folder: Path
    fingerprint: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Replace the checkpoint by this one. A kill in the middle leaves the earlier one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": self.fingerprint, "step": step, "state": state}
        temporary = self.file.with_suffix(".partial")
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(owned, temporary, metadata={"content": json.dumps(content)})
        _sync(temporary)
        temporary.replace(self.file)

    def load(self, needs: Collection[str] = ()) -> tuple[int, dict[str, Tensor], Any] | None:
        """(step, tensors, state) of the checkpoint; None when there is none of this fingerprint with these tensors."""
        if not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as file:
                content = json.loads(file.metadata()["content"])
                changed = changed_key(content["fingerprint"], self.fingerprint)
                lacking = sorted({*needs} - {*file.keys()})
                if changed is None and lacking:
                    changed = f"it has no {lacking[0]}, another version of the code wrote it"
                if changed is None:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
                    return content["step"], tensors, content["state"]
        except (SafetensorError, ValueError, KeyError, TypeError):
            changed = f"{self.file.name} cannot be read"
        self.discard(changed)
        return None

    def discard(self, reason: str) -> None:
        """Remove a checkpoint that cannot be continued from, and say why."""
        _discard(self.folder, reason)

    def clear(self) -> None:
        """Remove the checkpoint: the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def changed_key(old: Any, new: Any, where: str = "") -> str | None:
    """`key: old -> new` for the first difference of two fingerprints, None when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            changed = changed_key(old.get(key), new.get(key), f"{where}.{key}" if where else key)
            if changed is not None:
                return changed
        return None
    # through JSON, because that is what a stored fingerprint went through: tuples and lists are the same
    if json.dumps(old, sort_keys=True, default=str) == json.dumps(new, sort_keys=True, default=str):
        return None
    return f"{where} changed from {_short(old)} to {_short(new)}"


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str = "optimizer.") -> dict[str, Tensor]:
    """The state of a torch optimiser (AdamW, Muon, ...) as named tensors; numbers become 0-d float64 tensors.

    Learning rates are not part of it: a loop sets them from its step.
    """
    tensors: dict[str, Tensor] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{index}.{name}"] = value
            elif value is not None:
                tensors[f"{prefix}{index}.{name}"] = torch.tensor(value, dtype=torch.double)
    return tensors


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str = "optimizer."
) -> None:
    """Put back what `optimizer_tensors` gave, into an optimiser over the same parameters in their order."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def mark_complete(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Say that a Trainer's checkpoint folder is whole. Called after its last file was written."""
    for file in folder.iterdir():
        if file.is_file():
            _sync(file)
    temporary = folder / f".{MARKER}"
    temporary.write_text(json.dumps(fingerprint, default=str))
    _sync(temporary)
    temporary.replace(folder / MARKER)


def hf_checkpoint(
    folder: Path, fingerprint: dict[str, Any], is_over: Callable[[list[Any]], bool] = lambda log: False
) -> Path | None:
    """The last complete `checkpoint-N` of the Trainer under `folder`, to resume from.

    Incomplete ones are removed, and so is one of the last step, or whose log `is_over`: the Trainer would go a step
    beyond it. Those of another fingerprint are discarded; a line names the changed key.
    """
    newest_first = sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)
    complete = [path for path in newest_first if (path / MARKER).is_file()]
    if complete:
        changed = changed_key(json.loads((complete[0] / MARKER).read_text()), fingerprint)
        if changed is not None:
            _discard(folder, changed)
            return None
    usable = [path for path in complete if not _at_the_end(path, is_over)]
    for path in newest_first:
        if path not in usable:
            shutil.rmtree(path, ignore_errors=True)
    return usable[0] if usable else None


def _step_of(checkpoint: Path) -> int:
    return int(re.sub(r"\D", "", checkpoint.name) or 0)


def _at_the_end(checkpoint: Path, is_over: Callable[[list[Any]], bool]) -> bool:
    file = checkpoint / "trainer_state.json"
    if not file.is_file():
        return is_over([])
    state: dict[str, Any] = json.loads(file.read_text())
    return bool(state["global_step"] >= state["max_steps"]) or is_over(state.get("log_history", []))


def _discard(folder: Path, reason: str) -> None:
    print(f"{folder.name}: the checkpoint is discarded and the run starts from the beginning: {reason}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
