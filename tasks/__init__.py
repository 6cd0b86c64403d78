"""The stages: a file here is a stage, `python -m tasks.<stage>` runs it."""

import os
import sys

# How often a waiting thread of OpenMP looks before it sleeps. Without end, two stages of two threads each on two cores
# took six times as long; not at all, one stage alone took a fifth longer, for each operation wakes its threads.
# Set here because OpenMP reads it once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

if sys.argv[0] == "-m" and "ANNEAL_WARM" in os.environ:  # inside a run, and before anything is imported
    from tasks.lib import warm

    warm.hand_over_stage()
