"""The warm process of a run: it imports what the stages import, once, and every stage is a fork of it.

On a tiny model importing takes longer than the work of many a stage. A fork gets the module, arguments, folder,
environment and standard streams of the command that asked for it (tasks/lib/warm.py); that command stays in its
place below DVC and the watchdog, and when it is gone, so is the fork with all that it started. Nothing of this
project is imported here: a stage always runs the code that lies in its folder.

A fork cannot use a GPU that its parent has touched, and some libraries touch it when they are imported: where
there is one there is no warm process, and every stage imports for itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import guard

if TYPE_CHECKING:
    from flows.graph import Graph

LIBRARIES = (  # in the order in which a run wants them
    "dvc.cli.parser",
    "dvc.repo.reproduce",
    "dvc.stage.run",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
    "great_expectations",
    "matplotlib.figure",
    "datasets",
    "peft",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
)
LONGEST_JOB = 1 << 20  # bytes


def is_wanted(graph: Graph, force: bool) -> bool:
    """Whether forks can do the work, on Linux without a GPU, and several stages in Python may run."""
    gpus = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]
    in_python = [name for name in graph.may_run(force) if "python -m tasks." in graph.nodes[name].command]
    return len(in_python) > 2 and sys.platform == "linux" and not gpus


def main(address: str) -> None:
    """Import the libraries and run what is asked for, each in its own fork, until a signal comes."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # else bitsandbytes imports torch's compiler: 7 s the first time
    job = next_job(address)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path.insert(0, job["folder"])
    sys.argv = [job["module"], *job["arguments"]]
    run_and_end(job["module"])


def run_and_end(module: str) -> None:
    """`python -m module` up to its end: as the interpreter ends, but the libraries are not taken apart, which took
    most of a second of every fork."""
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = int(end.code or 0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its forks
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def next_job(address: str) -> dict[str, Any]:
    """What to run: only forks return from here. Who asks during an import is answered after it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        listener.setblocking(False)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers of the forks
        try:
            for library in (*LIBRARIES, ""):
                if library:
                    with contextlib.suppress(ImportError):
                        importlib.import_module(library)
                else:
                    listener.setblocking(True)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        channel, _ = listener.accept()
                        gc.freeze()  # a fork that ended without went through all objects of the libraries: 3 s
                        if os.fork() == 0:
                            return job_of_fork(channel)
                        channel.close()
            raise AssertionError("a blocking listener does not end")
        except KeyboardInterrupt:  # the run ends: its stages first
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
            sys.exit(130)


def job_of_fork(channel: socket.socket) -> dict[str, Any]:
    """Fork once more: the parent watches over the job and says how it ended, the child returns it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    message, streams, _, _ = socket.recv_fds(channel, LONGEST_JOB, 3)
    guard.adopt_orphans()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        channel.close()
        return dict(json.loads(message))
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # in both, so that no signal comes too early
    for stream in streams:
        os.close(stream)
    threading.Thread(target=_pass_on, args=(channel, child), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    guard.kill_descendants()
    with contextlib.suppress(OSError):
        channel.send(bytes([status if status >= 0 else 128 - status]))
    os._exit(0)


def _pass_on(channel: socket.socket, child: int) -> None:
    """Signals for the fork's process group; when the command that asked for it is gone, it is killed."""
    while True:
        number = channel.recv(1)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, number[0] if number else signal.SIGKILL)
        if not number:
            return


if __name__ == "__main__":
    main(sys.argv[1])
