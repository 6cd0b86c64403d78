"""One stage by DVC, for the flow: `python -m flows.dvc_child STAGE [--force]`.

It does what `dvc --wait-for-lock repro --single-item STAGE` does, but its exit status says what became of the stage,
so that nobody has to read DVC's messages, of which only warnings and errors are printed.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from tasks.lib.warm import ADDRESS, hand_over

RAN, COMMAND_FAILED, DVC_FAILED, UNCHANGED, RESTORED, STOPPED = 0, 1, 2, 10, 11, 130  # exit statuses


def main(stage: str, force: bool) -> int:
    """Bring the stage up to date; one of the exit statuses above."""
    from dvc.exceptions import DvcException
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageCmdFailedError

    commands = _commands_of(stage)
    try:
        # As `dvc --wait-for-lock` does: another stage's child may hold the lock for a moment
        with set_loggers_level(logging.WARNING), Repo(_wait_for_lock=True) as repo:
            changed = repo.reproduce([stage], single_item=True, force=force)
    except DvcException as error:
        print(f"dvc: {_with_causes(error)}", file=sys.stderr)
        if isinstance(error.__cause__, StageCmdFailedError):
            return COMMAND_FAILED
        return DVC_FAILED
    except KeyboardInterrupt:
        return STOPPED
    if not changed:
        return UNCHANGED
    return RAN if commands else RESTORED


def _commands_of(stage: str) -> list[str]:
    """A list that gets each command of the stage when DVC starts it; the command is printed, too.

    DVC says only in a message whether it ran a stage or took its outputs from the cache. Python's audit events say
    which processes are started, and DVC names the stage in their environment.
    """
    commands: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "subprocess.Popen":
            return
        _, command, _, environment = arguments
        if environment and environment.get("DVC_STAGE") == stage:
            commands.append(command[-1])
            print(f"> {command[-1]}", flush=True)

    sys.addaudithook(note)
    return commands


def _with_causes(error: BaseException) -> str:
    """The messages of an error and of what it was raised from, in one line."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    return ": ".join(messages)


if __name__ == "__main__":
    # a fork was started as flows.warm: it does the work, and does not ask for another fork
    if ADDRESS in os.environ and "flows.dvc_child" in sys.orig_argv:
        hand_over(os.environ[ADDRESS], "flows.dvc_child", sys.argv[1:])
    sys.exit(main(sys.argv[1], "--force" in sys.argv[2:]))
