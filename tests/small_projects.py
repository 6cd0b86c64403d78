"""Small dvc pipelines of shell stages, and what one can see of their processes. Used by tests/flows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]

# start -> left -> ends, start -> right; `right` may be told to fail, `slow` is not part of the default run
PIPELINE = """
stages:
  start:
    cmd: cp raw.txt start.txt
    deps: [raw.txt]
    outs: [start.txt]
  left:
    cmd: >-
      head -c 2 start.txt > left.txt;
      echo '{"loss": 0.25}' > reports/left.json
    deps: [start.txt]
    params: [left]
    outs: [left.txt]
    metrics:
      - reports/left.json: {cache: false}
  right:
    cmd: >-
      echo from right; cp start.txt right.txt;
      test ! -e broken || { echo "anneal: right is broken"; exit 1; }
    deps: [start.txt]
    params: [right]
    outs: [right.txt]
  ends:
    foreach: [a, b]
    do:
      cmd: cat left.txt > end_${item}.txt
      deps: [left.txt]
      outs: ["end_${item}.txt"]
  behind:
    cmd: cp right.txt behind.txt
    deps: [right.txt]
    outs: [behind.txt]
"""

PARAMS = """# kept
seed: 1
threads: 1
left: {x: 1}
right:
  y: 2e-5  # why
"""

ENDLESS = """
stages:
  endless:
    cmd: python endless.py
    deps: [endless.py]
    outs: [endless.txt]
"""

# starts a grandchild in a session of its own, as torchrun does, then waits for ever
ENDLESS_STAGE = """
import pathlib, subprocess, sys, time
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
grandchild = subprocess.Popen(sleep, start_new_session=True)
pathlib.Path("pids").write_text(f"{grandchild.pid}")
print("waiting", flush=True)
time.sleep(600)
"""


def wait_until(true: Callable[[], object], seconds: float = 120.0) -> bool:
    """Poll until the condition holds; False after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


def at_work(folder: Path) -> list[psutil.Process]:
    """Processes that run in a folder: everything that a run there has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder and process.status() != "zombie":
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
