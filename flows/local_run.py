"""What `anneal run` does: parameters laid over, a server started, the plan asked, the flow run, its table printed."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tasks.lib.stage import PARAMS_FILE, Problem, read_yaml


@dataclass(frozen=True)
class Request:
    """The arguments of `anneal run`; flows/cli.py says what each means."""

    targets: tuple[str, ...] = ()
    presets: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    keep: bool = False
    force: bool = False
    device: str | None = None
    oversize: bool = False
    parallel: int = 2
    retries: int = 0


def run(request: Request) -> int:
    """Bring the stages up to date; the exit status: 0, 1 when a stage failed, 130 when the run was cancelled."""
    from flows import outcome, presets, summary, workspace

    if request.parallel < 1 or request.retries < 0:
        raise Problem("--parallel needs at least 1, --retries at least 0")
    workspace.check()
    signal.signal(signal.SIGTERM, _interrupted)  # ends like Ctrl-C: children stopped, the record written
    with workspace.held() as lock:
        for line in presets.lay_over(request.presets, request.settings, request.keep):
            print(f"params.yaml  {line}")
        outcome.FILE.unlink(missing_ok=True)
        _run_flow(request, lock)
        summary.show(outcome.read())
    states = [entry["state"] for entry in outcome.read()["stages"].values()]
    if "Cancelled" in states:
        return 130
    if "Failed" in states:
        return 1
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def refuse_oversize(request: Request, starting: Collection[str]) -> None:
    """Problem when one of the stages `starting` needs more memory than `--device`, or else the GPU of this machine.

    Without both nothing is refused.
    """
    from flows import gpu

    gpu_bytes = gpu.memory()
    if request.oversize or (request.device is None and gpu_bytes is None):
        return  # before plan imports torch
    from flows import memory, plan, plan_table

    document = read_yaml(PARAMS_FILE)
    if request.device is not None:
        device = plan.device_of(request.device, document["threads"])
    else:
        assert gpu_bytes is not None
        device = memory.Device(gpu_bytes * memory.FREE, speed=1.0)  # its speed is not known
    too_large = plan_table.too_large(document, device, plan.config_of(request.presets))
    lines = [line for stage, line in too_large.items() if stage in starting]
    if lines:
        hint = "no stage was started; anneal plan shows the table, --oversize starts them anyway"
        raise Problem("\n".join([*lines, hint]))


def _run_flow(request: Request, lock: int) -> None:
    """Run the flow on the user's server, or on a temporary one that is started for it."""
    from flows import child, graph, params, server, warm

    with contextlib.ExitStack() as stack:
        process = None
        url = server.given()
        if url is None:
            process, url = server.start()
            stack.enter_context(server.stopped(process))
            print("anneal: a Prefect server is starting; this takes longest the first time", flush=True)
        # While the server starts: mistakes are found, libraries imported
        params.check()
        stages = graph.read_graph(request.targets)
        refuse_oversize(request, stages.may_run(request.force))
        if warm.is_wanted(stages, request.force):
            stack.enter_context(child.warm_process(lock))

        if process is not None:
            server.ready(process, url)
        token = graph.of_this_run.set(stages)
        try:
            _call_flow(request, url)
        finally:
            graph.of_this_run.reset(token)


def _call_flow(request: Request, url: str) -> None:
    """Call the flow in this process. A server that dies on the way does not undo what the stages did."""
    from flows import outcome
    from flows.post_training import post_training

    try:
        state = post_training(
            targets=list(request.targets),
            force=request.force,
            parallel=request.parallel,
            retries=request.retries,
            return_state=True,
        )
    except Exception as error:  # Prefect's own: what the flow raises is in its state
        reason = (str(error) or repr(error)).splitlines()[0][:120]
        message = f"the Prefect server at {url} does not answer ({reason})"
        if not outcome.FILE.exists():  # the flow writes it however it ends, once it has begun
            raise Problem(f"{message}; nothing was run") from None
        print(f"anneal: {message}; the stages continued without it", file=sys.stderr)
        return
    if not outcome.FILE.exists():
        raise Problem(str(state.message))
