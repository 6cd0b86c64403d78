"""The sections of params.yaml as the stages take them, with changes for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel

from flows.params import params_of
from tasks.lib.settings.ppo import PPOConfig
from tasks.lib.stage import read_yaml, validated

PARAMS = read_yaml(Path(__file__).resolve().parents[1] / "params.yaml")


def nested(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    """The model of a field that is a group of keys (or null)."""
    annotation = model.model_fields[key].annotation
    if get_origin(annotation) is dict:  # its keys are the user's
        return None
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def section(stage: str, **changes: Any) -> Any:
    """The validated section of params.yaml with `changes`: merged into a group of keys, in place of any other value.

    What a class of a library reads (`trainer`, `adapter`, `lora`) is no group: a test gives all of it.
    """
    model, given = params_of(stage), dict(PARAMS[stage])
    for key, value in changes.items():
        is_group = isinstance(value, Mapping) and key in model.model_fields and nested(model, key) is not None
        given[key] = {**(given[key] or {}), **value} if is_group else value
    return validated(stage, model, given)


def ppo_config(**changes: Any) -> PPOConfig:
    """PPO's choices as params.yaml has them, with `changes`."""
    given = {key: PARAMS["ppo"][key] for key in PPOConfig.model_fields}
    return PPOConfig(**given | changes)
