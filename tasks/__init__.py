"""The stages: a file here is a stage, `python -m tasks.<stage>` runs it."""

import os

# Threads that wait must sleep, not spin: two stages of two threads each on two cores took six times as long.
# Set here because OpenMP reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
