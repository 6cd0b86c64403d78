"""A manifest names every file of a folder with its hash, so that a changed byte is noticed before use.

DVC restores a corrupt cache file and safetensors loads flipped bits, both without a warning: see `verify`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tasks.lib.stage import Problem, file_hash, write_json

MANIFEST = "manifest.json"


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file under the folder except its manifest: relative name -> {sha256, size}, by name.

    Raises Problem on a link: what it points at can change without the folder changing.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise Problem(f"{path} is a link; a manifest lists files only, put the file itself there")
        if path.is_file() and path != folder / MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"sha256": file_hash(path), "size": path.stat().st_size}
    return files


def hash_of(path: Path) -> str:
    """One SHA-256 for an artifact: a file's own, or that of a folder's names and file hashes."""
    if path.is_file():
        return file_hash(path)
    if not path.is_dir():
        raise Problem(f"{path} does not exist, but the manifest traces it; run the stage that writes it")
    lines = [f"{entry['sha256']}  {name}\n" for name, entry in listed(path).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Write manifest.json: the files of the folder, and facts such as metrics and licences."""
    write_json(folder / MANIFEST, {"files": listed(folder), **facts})


def verify(folder: Path) -> dict[str, Any]:
    """Compare a folder with its manifest and return the manifest.

    Raises Problem that names a missing, an added or a changed file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected: dict[str, dict[str, Any]] = dict(manifest["files"])
    except FileNotFoundError:
        raise Problem(f"{folder} has no {MANIFEST}; it is not a complete export; write it again") from None
    except (UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise Problem(f"{folder / MANIFEST} is not a manifest; restore the folder or write it again") from None
    present = listed(folder)
    faults = {
        "is missing": [name for name in expected if name not in present],
        "is not in the manifest": [name for name in present if name not in expected],
        "was changed": [name for name in present if name in expected and present[name] != expected[name]],
    }
    for fault, names in faults.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise Problem(f"{folder / names[0]} {fault}{more}; restore the folder or write it again")
    return manifest
