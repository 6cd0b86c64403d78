"""Inside a run `python -m tasks.<stage>` is done by a fork of a process that has the libraries imported already.

Importing torch, transformers and TRL takes longer than the work of many a stage on a small model. flows/warm.py
keeps that process; this is how a command gets a fork of it: it sends what makes it itself (module, arguments,
folder, environment, standard streams), passes signals on, and ends as the fork ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

ADDRESS = "ANNEAL_WARM"  # the environment variable that names the Unix socket of the warm process


def hand_over(address: str, module: str, arguments: Sequence[str]) -> None:
    """Have `python -m module arguments` run by a fork of the warm process, and end. Returns if there is none."""
    job = {
        "module": module,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect(address)
            socket.send_fds(channel, [json.dumps(job).encode()], [0, 1, 2])
        except OSError:
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: channel.send(bytes([number])))
        status = channel.recv(1)  # nothing: the warm process was killed
        os._exit(status[0] if status else 1)


def hand_over_stage() -> None:
    """`hand_over` for this process if it was started as `python -m tasks.<stage>`; its own children stay here."""
    start = sys.orig_argv.index("-m") + 1
    module, *arguments = sys.orig_argv[start:]
    if module.count(".") == 1:
        hand_over(os.environ.pop(ADDRESS), module, arguments)
