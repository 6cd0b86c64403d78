"""params.yaml as a whole: every section is valid before anything starts."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.fields import fields
from tasks.lib.stage import PARAMS_FILE, PRECISIONS, SHARED_KEYS, TOP_KEYS, Problem, read_yaml, validated

DVC_FILE = Path("dvc.yaml")
STAGE = re.compile(r"-m tasks\.(\w+)")


def check(path: Path = PARAMS_FILE) -> None:
    """Validate every section against its stage's `Params`, or raise one Problem with a line per mistake."""
    lines = problems(path) if path.is_file() else []
    if lines:
        raise Problem("\n".join(lines))


def problems(path: Path = PARAMS_FILE) -> list[str]:
    """Every mistake in params.yaml, a line each, for the stages that dvc.yaml runs."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        return [f"{path}: expected sections, found {type(document).__name__}"]
    pipeline = DVC_FILE.read_text(encoding="utf-8")
    stages = list(dict.fromkeys(STAGE.findall(pipeline)))
    lines = _unknown_sections(document, stages, pipeline, path)
    if stages:
        lines += _wrong_shared_keys(document, path)
    for stage in stages:
        lines += _problems_of_section(stage, document, path)
    return lines


def _unknown_sections(document: Mapping[str, Any], stages: Collection[str], pipeline: str, path: Path) -> list[str]:
    """Sections of no stage. A section that dvc.yaml names in another way, as of a shell command, is known too."""
    known = [*stages, *TOP_KEYS]
    for name in document:
        is_named = re.search(rf"\b{re.escape(str(name))}\b", pipeline)
        if is_named and name not in known:
            known.append(name)
    lines = []
    for name in document:
        if name not in known:
            hint = _nearest(str(name), known, cutoff=0.5) or f"known sections: {', '.join(known)}"
            lines.append(f"{path}: the section {name} belongs to no stage; {hint}")
    return lines


def _wrong_shared_keys(document: Mapping[str, Any], path: Path) -> list[str]:
    lines = []
    for key in SHARED_KEYS:
        value = document.get(key)
        if not isinstance(value, int):
            lines.append(f"{path}: {key}: expected a whole number, found {value!r}")
    precision = document.get("precision", PRECISIONS[0])
    if precision not in PRECISIONS:
        lines.append(f"{path}: precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    return lines


def _problems_of_section(stage: str, document: Mapping[str, Any], path: Path) -> list[str]:
    if stage not in document:
        return [f"{path}: the section {stage} is missing"]
    try:
        params = validated(stage, params_of(stage), document[stage], path)
    except (ImportError, AttributeError) as error:
        return [f"tasks/{stage}.py: {error}"]
    except Problem as problem:
        return [str(problem)]
    return _misspelt_keys(stage, params, path)


def params_of(stage: str) -> type[BaseModel]:
    """The model of a stage's section: in the settings, or in the stage itself where that imports nothing heavy."""
    name = f"tasks.lib.settings.{stage}"
    module = importlib.import_module(name if find_spec(name) else f"tasks.{stage}")
    model: type[BaseModel] = module.Params
    return model


def _misspelt_keys(stage: str, params: BaseModel, path: Path) -> list[str]:
    """Keys in a section's `trainer:` or `lora:` that none of the library's classes has which its annotation names."""
    lines = []
    for name, field in type(params).model_fields.items():
        classes = [place for place in field.metadata if isinstance(place, str)]
        known: set[str] = set()
        for place in classes:
            known |= fields(place)
        if not known:  # no settings of a library, or of one that is not installed
            continue
        short_names = " or ".join(place.rpartition(".")[2] for place in classes)
        for key in getattr(params, name) or {}:
            if key not in known:
                hint = _nearest(key, sorted(known), cutoff=0.4)
                line = f"{path}: {stage}.{name}.{key} is not a key of {short_names}"
                lines.append(f"{line}; {hint}" if hint else line)
    return lines


def _nearest(word: str, known: Collection[str], cutoff: float) -> str:
    """`did you mean <the nearest known word>?`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else ""
