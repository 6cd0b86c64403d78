"""Sections of params.yaml, validated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from tasks.lib.stage import validated


def read_sections(document: Mapping[str, Any], modules: Iterable[ModuleType]) -> dict[str, Any]:
    """The section of each module of tasks.lib.settings, by its name. Problem for a mistake in one of them."""
    sections: dict[str, Any] = {}
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        sections[name] = validated(name, module.Params, document[name])
    return sections
