"""The stages: a file here is a stage, `python -m tasks.<stage>` runs it."""

import logging
import os
import sys
from typing import Any, cast

# How often a waiting thread of OpenMP looks before it sleeps. Without end, two stages of two threads each on two cores
# took six times as long; not at all, one stage alone took a fifth longer, for each operation wakes its threads.
# Set here because OpenMP reads it once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# bitsandbytes fetches native code from the Hub while it is imported, on CPUs with bf16 instructions and where the
# package `kernels` is installed. Nothing is fetched unasked: to every stage that package is not installed.
cast(dict[str, Any], sys.modules).setdefault("kernels", None)
# Two lines per layer that bitsandbytes prints for every CPU model, and one about that package
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)

if sys.argv[0] == "-m" and "ANNEAL_WARM" in os.environ and "RANK" not in os.environ:  # inside a run, in one process
    from tasks.lib import warm

    warm.hand_over_stage()
