"""The GPU of this machine, asked of its driver: no torch, whose import takes seconds."""

from __future__ import annotations

import shutil
import subprocess


def memory() -> float | None:
    """Bytes of the smallest NVIDIA GPU here; None without one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    words = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    mebibytes = [float(word) for word in words if word.isdigit()]
    if not mebibytes:
        return None
    return min(mebibytes) * 2**20
