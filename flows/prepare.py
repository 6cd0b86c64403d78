"""What a first run does before its first stage, done once at installation: `python -m flows.prepare` (Makefile).

Python compiles what a run imports, and the temporary Prefect server makes its database: 20 of the seconds that a
run in a new environment would wait for. Both happen by themselves where this was not done.
"""

from __future__ import annotations

import importlib
import os
import sys

from flows import server, telemetry, warm
from tasks.lib.stage import Problem


def main() -> None:
    telemetry.switch_off()
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as in warm.py
    process, url = server.start()
    with server.stopped(process):
        for module in (*warm.LIBRARIES, "flows.post_training"):
            importlib.import_module(module)
        server.ready(process, url)


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"anneal: {problem}")
