"""The models that are compared: those that the pipeline trains, and further ones that people add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tasks.lib.settings.evaluate import Trained
from tasks.lib.stage import Problem

TRAINED: tuple[str, ...] = get_args(Trained)
FEW_SHOT = "base_few_shot"  # the base model, asked with solved examples in front of each prompt


def folder_of(name: str, others: Path) -> Path:
    """models/<name> of a model that the pipeline trains, else the subfolder of `others`."""
    if name == FEW_SHOT:
        raise Problem(f"{FEW_SHOT} is the model base with another prompt, and can be compared only; name base")
    if name in TRAINED:
        return Path("models") / name
    return others / name


def compared_folders(models: Sequence[str], others: Path, few_shot: bool = False) -> dict[str, Path]:
    """Name -> folder of `models`, in their order, then of every subfolder of `others` that holds a model, by name.

    With `few_shot` the base model is there a second time, as FEW_SHOT.
    Raises Problem when `others` is not there, or when one of its subfolders has the name of a trained model.
    """
    if not others.is_dir():
        raise Problem(f"evaluate.others: {others} is not a folder; name one, which may be empty")
    folders: dict[str, Path] = {}
    for name in models:
        folders[name] = folder_of(name, others)
        if few_shot and name == "base":
            folders[FEW_SHOT] = folders[name]
    for file in sorted(others.glob("*/config.json")):
        name = file.parent.name
        if name in (*TRAINED, FEW_SHOT):
            raise Problem(f"{file.parent}: a model of the pipeline has this name; rename the folder")
        folders[name] = file.parent
    return folders
