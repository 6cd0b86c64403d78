"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# Before torch is imported: tiny models gain nothing from threads, and some tests fork, which a pool of
# OpenMP threads does not survive. Children inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# Started in the background (`make test &`) everything would ignore what Ctrl-C sends
signal.signal(signal.SIGINT, signal.default_int_handler)
# `dvc` and `python` of this environment, activated or not
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside a developer's checkout; a user's machine has none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real data (../shared/data) is absent")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that is also the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
