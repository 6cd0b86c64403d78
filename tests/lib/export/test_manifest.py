"""A manifest catches what DVC and safetensors let pass: a flipped bit, a missing file, a file too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.lib.export.manifest import hash_of, verify, write_manifest
from tasks.lib.stage import Problem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8/model.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "README.md").write_text("card")
    write_manifest(tmp_path, formats=["int8"])
    return tmp_path


def test_a_whole_folder_is_verified_and_its_facts_returned(folder: Path) -> None:
    manifest = verify(folder)
    assert manifest["formats"] == ["int8"]
    assert list(manifest["files"]) == ["README.md", "int8/model.safetensors"]


def test_a_flipped_bit_is_named(folder: Path) -> None:
    file = folder / "int8/model.safetensors"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(Problem, match=r"int8/model.safetensors was changed"):
        verify(folder)


def test_a_removed_and_an_added_file_are_named(folder: Path) -> None:
    (folder / "extra.bin").write_text("x")
    with pytest.raises(Problem, match=r"extra.bin is not in the manifest"):
        verify(folder)
    (folder / "README.md").unlink()
    with pytest.raises(Problem, match=r"README.md is missing"):
        verify(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "{}", "\x00"])
def test_a_broken_manifest_is_a_problem(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(Problem, match="is not a manifest"):
        verify(folder)


def test_no_manifest_and_a_link_are_problems(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "README.md")
    with pytest.raises(Problem, match="is a link"):
        verify(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(Problem, match="has no manifest"):
        verify(folder)


def test_the_hash_of_a_folder_depends_on_names_and_bytes(folder: Path) -> None:
    before = hash_of(folder)
    (folder / "README.md").rename(folder / "OTHER.md")
    assert hash_of(folder) != before
    (folder / "OTHER.md").rename(folder / "README.md")
    assert hash_of(folder) == before
