"""What every process of a run gets from its environment: no telemetry, the right python, loopback only.

The one place where the telemetry of the dependencies is switched off. A value that the user has set wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

QUIET = {
    "DO_NOT_TRACK": "1",  # Prefect's client asks for it at import, so does Gradio
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL's trainers honour it too
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "WANDB_MODE": "disabled",
}

PREFECT = {
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the default of 20 s fails on a small machine
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",  # else a lost server prints every event that it missed
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(task_run_name)s | %(message)s",
}


def switch_off(environment: MutableMapping[str, str] = os.environ) -> None:
    """Switch telemetry off for this process and its children; before prefect, dvc or trl is imported."""
    for key, value in (QUIET | PREFECT).items():
        environment.setdefault(key, value)


def child_environment() -> dict[str, str]:
    """The environment of a stage: this one, with this python first so that `python -m tasks.sft` finds it."""
    environment = dict(os.environ)
    switch_off(environment)
    here = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([here, environment.get("PATH", os.defpath)])
    environment["PYTHONUNBUFFERED"] = "1"  # progress lines arrive when they are printed
    return environment
