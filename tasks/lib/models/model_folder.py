"""A model as a folder: safetensors that are whole, no code, one hash, replaced whole or not at all."""

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
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in _indexed(index):
            if not (folder / Path(name).name).is_file():
                raise Problem(f"{folder}: {name} is missing, but the index names it; restore the folder")
    if (folder / "adapter_config.json").is_file():
        raise Problem(f"{folder} holds an adapter, not a model; merge it into its base model first")
    if not (folder / "config.json").is_file():
        raise Problem(f"{folder}: config.json is missing; this is not a transformers model folder")
    if not files:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHTS)
        advice = f"{others[0]} is not loaded: convert it to safetensors" if others else "restore the folder"
        raise Problem(f"{folder}: no *.safetensors; {advice}")
    if len(files) > 1 and not index.is_file():
        raise Problem(f"{folder}: {len(files)} safetensors files but no model.safetensors.index.json")
    return files


def _indexed(index: Path) -> list[str]:
    """The names of the files that an index of safetensors files names, in order."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise Problem(f"{index}: not an index of safetensors files; restore the folder") from None


def weights_hash(path: str | Path) -> str:
    """sha256 over the folder's safetensors files in name order (64 hex digits)."""
    digest = hashlib.sha256()
    for file in weight_files(existing_folder(path)):
        with file.open("rb") as stream:
            for block in iter(partial(stream.read, 1 << 20), b""):
                digest.update(block)
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
    """Problem when the model asks for code of its own (`auto_map`)."""
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise Problem(f"{file}: not valid JSON; restore the folder") from None
        if isinstance(content, dict) and "auto_map" in content:
            raise Problem(f"{file}: auto_map asks to run the model's own code; only classes of transformers are loaded")


def first_line(error: Exception) -> str:
    """What a library says of a file that it cannot read, as one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
