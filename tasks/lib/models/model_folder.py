"""A model as a folder: safetensors that are whole, no code, one hash, replaced whole or not at all.

A folder holds weights, or an adapter of peft's and `base.json`: the folder of the model that the adapter stands on, and
the hash of its weights. That model may be an adapter too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tasks.lib.stage import Problem

BASE = "base.json"  # of an adapter: {"path": folder, "weights": its weights_hash}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# pickles, or no model of transformers
OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack"}


def existing_folder(path: str | Path) -> Path:
    """The path as a folder that is there; a Problem otherwise."""
    folder = Path(path)
    if not folder.exists():
        raise Problem(f"{folder} does not exist; run the stage that makes it, or correct the path")
    if not folder.is_dir():
        raise Problem(f"{folder} is a file; a folder with config.json and *.safetensors is needed")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder in name order; a Problem when they are not all there."""
    if not (folder / "config.json").is_file():
        raise Problem(f"{folder}: config.json is missing; this is not a transformers model folder")
    if is_adapter(folder):
        if not (folder / ADAPTER[1]).is_file():
            raise Problem(f"{folder}: {ADAPTER[1]} is missing; restore the folder")
        return [folder / ADAPTER[1]]
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in _indexed(index):
            if not (folder / Path(name).name).is_file():
                raise Problem(f"{folder}: {name} is missing, but the index names it; restore the folder")
    if not files:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
        advice = f"{others[0]} is not loaded: convert it to safetensors" if others else "restore the folder"
        raise Problem(f"{folder}: no *.safetensors; {advice}")
    if len(files) > 1 and not index.is_file():
        raise Problem(f"{folder}: {len(files)} safetensors files but no model.safetensors.index.json")
    return files


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter; a Problem for one that does not say what it stands on."""
    if not (folder / ADAPTER[0]).is_file():
        return False
    if not (folder / BASE).is_file():
        raise Problem(f"{folder} holds an adapter, not a model, and no {BASE}; merge it into its base model first")
    return True


def stacked_folders(path: str | Path) -> list[Path]:
    """A model's folder, that of the model which it stands on if it is an adapter, and so on: the last holds weights.

    Problem when one of them is not the model that the adapter was trained on.
    """
    folders = [existing_folder(path)]
    while is_adapter(folders[-1]):
        origin = origin_of(folders[-1])
        below = existing_folder(origin["path"])
        found = weights_hash(below)
        if found != origin["weights"]:
            raise Problem(
                f"{folders[-1]}: was trained on another {below}: expected weights {origin['weights'][:12]}, "
                f"found {found[:12]}; restore that folder, or run the stage that trains the adapter again"
            )
        folders.append(below)
    return folders


def origin_of(adapter: Path) -> dict[str, str]:
    """What an adapter stands on: {path, weights}."""
    file = adapter / BASE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"path": str(content["path"]), "weights": str(content["weights"])}
    except (ValueError, KeyError, TypeError):
        raise Problem(f'{file}: expected {{"path": folder, "weights": hash}}; restore the folder') from None


def _indexed(index: Path) -> list[str]:
    """The names of the files that an index of safetensors files names, in order."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise Problem(f"{index}: not an index of safetensors files; restore the folder") from None


def weights_hash(path: str | Path) -> str:
    """sha256 over the folder's safetensors files in name order (64 hex digits).

    Of an adapter its configuration and the hash of the weights that it stands on count, too.
    """
    folder = existing_folder(path)
    digest = hashlib.sha256()
    for file in weight_files(folder):
        with file.open("rb") as stream:
            for block in iter(partial(stream.read, 1 << 20), b""):
                digest.update(block)
    if is_adapter(folder):
        digest.update((folder / ADAPTER[0]).read_bytes())
        digest.update(origin_of(folder)["weights"].encode())
    return digest.hexdigest()


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to `path` that takes its place on success and vanishes on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.partial")
    stale = path.with_name(f".{path.name}.{os.getpid()}.stale")
    try:
        fresh.mkdir()
        yield fresh
        if path.exists():
            path.replace(stale)
        fresh.replace(path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def refuse_code(folder: Path) -> None:
    """Problem when the model asks for code of its own (`auto_map`; `megatron_config`: of a module by its name)."""
    for file in (folder / "config.json", folder / "tokenizer_config.json", folder / ADAPTER[0]):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise Problem(f"{file}: not valid JSON; restore the folder") from None
        if isinstance(content, dict) and ("auto_map" in content or content.get("megatron_config")):
            key = "auto_map" if "auto_map" in content else "megatron_config"
            raise Problem(f"{file}: {key} asks to run the model's own code; only classes of transformers are loaded")


def first_line(error: Exception) -> str:
    """What a library says of a file that it cannot read, as one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
