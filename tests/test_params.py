"""params.yaml: every key is read by somebody and explained, every preset fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML
from sections import nested

from flows.params import params_of
from tasks.lib.stage import TOP_KEYS, Problem, read_params, read_yaml, validated

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "params.yaml"
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
STAGES = sorted(path.stem for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__")


def unexplained(lines: list[str], section: Any, model: type[BaseModel], where: str) -> list[str]:
    """Fields without a comment on their line, or alone on the line before or after it."""
    found = []
    for key, value in section.items():
        group = nested(model, key)
        if group and isinstance(value, dict) and set(value) <= set(group.model_fields):
            found += unexplained(lines, value, group, f"{where}.{key}")
            continue
        number = section.lc.key(key)[0]
        around = [line.strip() for line in lines[max(number - 1, 0) : number + 2]]
        if "# " not in lines[number] and not any(line.startswith("# ") for line in around):
            found.append(f"{where}.{key}")
    return found


def missing(section: dict[str, Any], model: type[BaseModel], where: str) -> list[str]:
    """Fields whose default is in no place or in two: each is a key of params.yaml, or has a default in its class."""
    found = []
    for key, field in model.model_fields.items():
        if field.is_required() != (key in section):
            found.append(f"{where}.{key}")
    for key in model.model_fields:
        group, value = nested(model, key), section.get(key)
        if group and isinstance(value, dict) and set(value) <= set(group.model_fields):
            found += missing(value, group, f"{where}.{key}")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_a_field_and_every_default_is_in_one_place(stage: str) -> None:
    read_params(stage, params_of(stage), FILE)  # a key that nobody reads is a Problem
    assert missing(read_yaml(FILE)[stage], params_of(stage), stage) == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_explained(stage: str) -> None:
    text = FILE.read_text(encoding="utf-8")
    section = YAML().load(text)[stage]
    assert unexplained(text.splitlines(), section, params_of(stage), stage) == []


def paths_of(model: type[BaseModel], where: str) -> list[str]:
    """The dotted keys of the fields that are paths; `classify.tasks.*.rows` where the user names a group.

    DVC can put a path into the dependencies of a stage only where it is the value of a key.
    """
    found = []
    for key, field in model.model_fields.items():
        group = nested(model, key)
        groups_by_name = [one for one in get_args(field.annotation) if isinstance(one, type)]
        if field.annotation is Path:
            found.append(f"{where}.{key}")
        elif group is not None:
            found += paths_of(group, f"{where}.{key}")
        elif groups_by_name and issubclass(groups_by_name[-1], BaseModel):
            found += paths_of(groups_by_name[-1], f"{where}.{key}.*")
        else:
            assert "Path" not in str(field.annotation), f"{where}.{key}: no list, mapping or null of paths"
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_sees_every_path_that_a_parameter_names(stage: str) -> None:
    entry = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    dependencies = entry.get("do", entry)["deps"]
    for key in paths_of(params_of(stage), stage):
        in_a_stage_of_its_own = f"{str(entry.get('foreach')).strip('${}')}.*."
        name = f"item.{key.removeprefix(in_a_stage_of_its_own)}" if key.startswith(in_a_stage_of_its_own) else key
        assert f"${{{name}}}" in dependencies, key


def test_a_string_that_names_a_file_or_folder_is_a_path() -> None:
    """But for the configuration file in a launcher's command line."""
    for stage in STAGES:
        for key, value in read_yaml(FILE)[stage].items():
            if isinstance(value, str) and "/" in value and key != "launcher":
                assert f"{stage}.{key}" in paths_of(params_of(stage), stage)


def test_no_section_without_a_stage() -> None:
    assert sorted(set(read_yaml(FILE)) - {*TOP_KEYS}) == STAGES


def test_a_repeated_key_is_an_error_that_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(FILE.read_text(encoding="utf-8") + "\nseed: 2\n")
    with pytest.raises(Problem, match=r"params\.yaml:\d+:\d+: .*duplicate key"):
        read_yaml(path)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_fits_the_schemas(preset: Path) -> None:
    overlay = read_yaml(preset)
    assert isinstance(overlay, dict) and overlay
    laid = merged(read_yaml(FILE), overlay)
    assert set(laid) == {*TOP_KEYS, *STAGES}, "a section of no stage"
    for stage in set(overlay) - {*TOP_KEYS}:
        validated(stage, params_of(stage), laid[stage], preset)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_says_what_it_is_for(preset: Path) -> None:
    assert preset.read_text(encoding="utf-8").startswith("# ")


def merged(document: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """As `anneal run --preset` lays it: groups are merged, everything else is replaced."""
    both = dict(document)
    for key, value in overlay.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return both
