"""Presets and --set are laid over the committed params.yaml; params.yaml is validated as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from flows import params, presets
from tasks.lib.stage import Problem, read_yaml


class Trainer(BaseModel, extra="forbid"):
    learning_rate: float


class Params(BaseModel, extra="forbid"):
    epochs: int
    trainer: Trainer


def test_a_preset_changes_values_and_keeps_comments(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "s3://somewhere")
    Path("preset.yaml").write_text("right: {y: 1e-3}\nleft: {x: '${WHERE}/base'}\n")
    changed = presets.lay_over([Path("preset.yaml")], ["seed=7", "left.z=[1, 2]"])
    assert changed == [
        "right.y: 2e-05 -> 0.001",
        "left.x: 1 -> 's3://somewhere/base'",
        "seed: 1 -> 7",
        "left.z: 'unset' -> [1, 2]",
    ]
    text = Path("params.yaml").read_text()
    assert "# kept" in text and "# why" in text
    assert read_yaml(Path("params.yaml"))["right"]["y"] == 1e-3


def test_a_second_command_replaces_the_presets_of_the_first(project: Path) -> None:
    presets.lay_over([], ["left.x=5"])
    presets.lay_over([], ["right.y=0.1"])
    document = read_yaml(Path("params.yaml"))
    assert (document["left"]["x"], document["right"]["y"]) == (1, 0.1)


def test_presets_of_one_command_are_laid_over_in_their_order(project: Path) -> None:
    Path("one.yaml").write_text("left: {x: 2}\nright: {y: 0.5}\n")
    Path("two.yaml").write_text("left: {x: 3}\n")
    presets.lay_over([Path("one.yaml"), Path("two.yaml")], ["seed=9"])
    document = read_yaml(Path("params.yaml"))
    assert (document["left"]["x"], document["right"]["y"], document["seed"]) == (3, 0.5, 9)


def test_a_persons_changes_are_not_overwritten(project: Path) -> None:
    text = Path("params.yaml").read_text().replace("x: 1", "x: 3")
    Path("params.yaml").write_text(text)
    with pytest.raises(Problem, match="not committed"):
        presets.lay_over([], ["seed=2"])
    assert Path("params.yaml").read_text() == text
    presets.lay_over([], ["seed=2"], keep=True)
    assert read_yaml(Path("params.yaml"))["left"]["x"] == 3


def test_mistakes_in_a_preset_leave_params_as_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path("params.yaml").read_bytes()
    monkeypatch.delenv("NOT_SET", raising=False)
    Path("preset.yaml").write_text("left: {x: '${NOT_SET}'}\n")
    with pytest.raises(Problem, match=r"preset.yaml: \$\{NOT_SET\} is not set"):
        presets.lay_over([Path("preset.yaml")], [])
    with pytest.raises(Problem, match=r"presets/none.yaml"):
        presets.lay_over([Path("presets/none.yaml")], [])
    with pytest.raises(Problem, match="expected key=value"):
        presets.lay_over([], ["seed"])
    with pytest.raises(Problem, match=r"params.yaml: the section lefft belongs to no stage; did you mean"):
        presets.lay_over([], ["lefft.x=1"])
    assert Path("params.yaml").read_bytes() == before


def test_every_mistake_is_named_with_the_nearest_right_key(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "params_of", lambda stage: Params)
    Path("dvc.yaml").write_text("stages:\n  tune:\n    cmd: python -m tasks.tune\n    params: [tune]\n")
    good = "seed: 1\nthreads: 1\ntune:\n  epochs: 2\n  trainer: {learning_rate: 2e-5}\n"
    Path("params.yaml").write_text(good)
    params.check()
    Path("params.yaml").write_text(good.replace("learning_rate", "learnign_rate") + "tunes: {}\n")
    with pytest.raises(Problem) as raised:
        params.check()
    lines = str(raised.value).splitlines()
    assert lines[0] == "params.yaml: the section tunes belongs to no stage; did you mean tune?"
    assert "did you mean learning_rate?" in lines[1]
    Path("params.yaml").write_text(good.replace("epochs: 2", "epochs: two"))
    with pytest.raises(Problem, match=r'tune\.epochs: input should be a valid integer.* found "two"'):
        params.check()
