"""`python -m flows.warm_dvc ...` is `dvc ...`, by a fork of the warm process (warm.py) where there is one."""

from __future__ import annotations

import os
import runpy
import sys

from tasks.lib.warm import ADDRESS, hand_over

if __name__ == "__main__":
    if ADDRESS in os.environ:
        hand_over(os.environ[ADDRESS], "dvc", sys.argv[1:])
    runpy.run_module("dvc", run_name="__main__", alter_sys=True)
