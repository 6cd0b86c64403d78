"""The stages: a file here is a stage, `python -m tasks.<stage>` runs it."""

import os
import sys

# Threads that wait must sleep, not spin: two stages of two threads each on two cores took six times as long.
# Set here because OpenMP reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[0] == "-m" and "ANNEAL_WARM" in os.environ:  # inside a run, and before anything is imported
    from tasks.lib import warm

    warm.hand_over_stage()
