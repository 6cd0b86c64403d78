"""The post-training flow: bring every stage of dvc.yaml up to date, in order, and say what became of each.

What runs is decided by dvc.yaml and dvc.lock alone; each changed stage is one `dvc repro --single-item` in a
child process, so `dvc repro` and this flow write the same dvc.lock. Prefect adds when it runs, what happens
when a stage fails, and where one can look. Run it with `anneal run`, or as a deployment (prefect.yaml).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from graphlib import TopologicalSorter
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from flows import telemetry

telemetry.switch_off()  # before prefect is imported: it asks at import

from httpx import TransportError  # noqa: E402
from prefect import allow_failure, flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.objects import StateDetails  # noqa: E402
from prefect.context import FlowRunContext  # noqa: E402
from prefect.states import Cancelled, Completed, Failed, State  # noqa: E402

from flows import child, lineage, outcome, params, picture, reports, server, warm, workspace  # noqa: E402
from flows.child import Children  # noqa: E402
from flows.graph import Graph, read_graph, read_lock  # noqa: E402
from flows.outcome import DONE, STATES, Outcome  # noqa: E402
from flows.repro import bring_up_to_date  # noqa: E402
from tasks.lib.stage import Problem  # noqa: E402

CANCEL_POLL_SECONDS = 3.0
READ: list[Graph] = []  # the graph of a run whose starter has read and checked it while its server started


@flow(name="post-training")
def post_training(
    targets: list[str] | None = None,
    force: bool = False,
    parallel: int = 2,
    retries: int = 0,
    retry_delay_seconds: float = 5.0,
) -> State:
    """Bring the stages of dvc.yaml (or `targets` and all they depend on) up to date, `parallel` side by side.

    A stage that failed for another reason than a user's mistake is tried again `retries` times, from its last
    checkpoint on. `force` runs unchanged stages too. The flow fails when a stage failed, after all others.
    """
    with workspace.held() as lock:
        workspace.check()
        run = Run(READ.pop() if READ else checked_graph(targets or ()), Children((lock,)), force)
        one_stage = stage.with_options(retries=retries, retry_delay_seconds=retry_delay_seconds)
        ready = child.warm(lock) if warm.is_wanted(run.graph, force) else nullcontext()
        with ready, recorded(run), stopped_at_the_end(run), stopped_when_cancelled(run.children):
            for name in in_order(run.graph.edges(), parallel, run.ended):
                upstream = [edge(above, run) for above in run.graph.nodes[name].upstream]
                future = one_stage.submit(name, run, wait_for=upstream)  # type: ignore[call-overload]
                future.add_done_callback(lambda _, name=name: run.ended.put(name))
                run.futures[name] = future
        return final_state(run)


def checked_graph(targets: Sequence[str]) -> Graph:
    """The graph of the targets, when every section of params.yaml is valid."""
    params.check()
    return read_graph(targets)


def edge(upstream: str, run: Run) -> Any:
    """What a stage waits for. `allow_failure` lets failed task runs pass, but not cancelled (skipped) ones,
    behind which a stage would stay `NotReady`: these stand as failed, and the edge is drawn all the same."""
    future, result = run.futures[upstream], run.outcomes.get(upstream)
    if result is not None and result.state in DONE:
        return future
    return allow_failure(Failed(state_details=StateDetails(task_run_id=future.task_run_id)))


def may_pass_next_time(_task: Any, _run: Any, state: State) -> bool:
    """A stage's own `anneal: ...` line is a mistake that stays one; a crash may not happen again."""
    return not any(line.startswith("anneal: ") for line in (state.message or "").splitlines())


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=may_pass_next_time)
def stage(name: str, run: Run) -> State:
    """One stage: skipped, cached, or run by dvc in a child process. Its figures become a table artifact."""
    log = get_run_logger()
    result = bring_up_to_date(name, run.graph, run.outcomes, run.children, force=run.force, on_line=log.info)
    run.outcomes[name] = result
    if result.state in DONE and (figures := reports.figures(name)):
        table = [{"figure": figure, "value": str(value)} for figure, value in figures.items()]
        with server_may_be_gone(log):
            create_table_artifact(table, key=lineage.key(name), description=f"Figures of {name}")
    is_judged = result.state in DONE or result.is_violation
    if is_judged and (page := lineage.contract(name)):
        with server_may_be_gone(log):
            create_markdown_artifact(page, key=f"contract-{lineage.key(name)}", description=f"Claims of {name}")
    match result.state:
        case "Completed" | "Cached":
            return Completed(name=result.state, message=result.reason)
        case "Failed":
            return Failed(message="\n\n".join(filter(None, [result.reason, result.tail])))
        case state:
            return Cancelled(name=state, message=result.reason)


class Run:
    """What the flow and its task runs share: the graph, the child processes, how each stage ended."""

    def __init__(self, graph: Graph, children: Children, force: bool) -> None:
        self.graph = graph
        self.children = children
        self.force = force
        self.outcomes: dict[str, Outcome] = {}
        self.futures: dict[str, Any] = {}
        self.ended: SimpleQueue[str] = SimpleQueue()
        self.before = {name: reports.figures(name) for name in graph.nodes}
        self.started = time.monotonic()


def in_order(edges: Mapping[str, Sequence[str]], parallel: int, ended: SimpleQueue[str]) -> Iterator[str]:
    """Yield each stage once all it depends on has ended and fewer than `parallel` are running.

    Whoever starts a stage puts its name into `ended` when it is over, however it ended.
    """
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    ready: list[str] = []
    running = 0
    while sorter.is_active():
        ready += sorter.get_ready()
        while ready and running < max(1, parallel):
            running += 1
            yield ready.pop(0)
        sorter.done(ended.get())
        running -= 1


def final_state(run: Run) -> State:
    """Completed, or Failed naming the stages that failed, or Cancelled."""
    count = {state: [n for n, o in run.outcomes.items() if o.state == state] for state in STATES}
    said = ", ".join(f"{len(names)} {state.lower()}" for state, names in count.items() if names)
    if count["Cancelled"]:
        return Cancelled(message=f"stopped: {said}")
    if failed := count["Failed"]:
        return Failed(message=f"{said}: " + "; ".join(f"{n}: {run.outcomes[n].reason}" for n in failed))
    return Completed(message=said)


@contextmanager
def stopped_at_the_end(run: Run) -> Iterator[None]:
    """No child outlives the flow: SIGTERM and Ctrl-C arrive as exceptions in the flow's thread."""
    try:
        yield
    finally:
        run.children.stop()
        for future in run.futures.values():
            future.wait(10)  # until it has said how it ended


@contextmanager
def stopped_when_cancelled(children: Children) -> Iterator[None]:
    """Watch for a click on Cancel: a worker would send SIGTERM, but an ad-hoc run has no worker."""
    context = FlowRunContext.get()
    over = Event()

    def watch(run_id: Any) -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(CANCEL_POLL_SECONDS):
                with server_may_be_gone(None):
                    state = client.read_flow_run(run_id).state
                    if state and (state.is_cancelling() or state.is_cancelled()):
                        return children.stop()

    if context and context.flow_run:
        Thread(target=watch, args=(context.flow_run.id,), daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def recorded(run: Run) -> Iterator[None]:
    """Write down what became of the run, also of one that was stopped: local files first, then the server."""
    try:
        yield
    finally:
        lock = read_lock()
        ended = {name: run.outcomes[name] for name in run.graph.nodes if name in run.outcomes}
        drawing = picture.draw(run.graph.edges(), ended)
        outcome.write(ended, run.before, time.monotonic() - run.started)
        (lineage.FOLDER / "lineage.svg").write_text(drawing, encoding="utf-8")
        page = lineage.markdown(ended, lock, "lineage.svg")
        (lineage.FOLDER / "lineage.md").write_text(page, encoding="utf-8")
    with server_may_be_gone(get_run_logger()):
        page = lineage.markdown(ended, lock, lineage.data_uri(drawing))
        create_markdown_artifact(page, key="lineage", description="The graph, its hashes and figures")
        context = FlowRunContext.get()
        if context and context.flow_run:
            with get_client(sync_client=True) as client:
                tags = {*context.flow_run.tags, *lineage.tags(ended, lock)}
                client.update_flow_run(context.flow_run.id, tags=sorted(tags))


@contextmanager
def server_may_be_gone(log: Any) -> Iterator[None]:
    """Training does not stop for a Prefect server that does; what it missed stands in .anneal/."""
    try:
        yield
    except Exception as error:
        if log:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(f"the Prefect server did not take this ({first}); see {Path('.anneal')} for what it missed")


class OneLine(logging.Filter):
    """Prefect prints a failed state three times, with the whole tail of the log: one line is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0] is None:
            return False  # "Task run failed with state ..." and no exception
        if record.exc_info and isinstance(record.exc_info[1], (Problem, TransportError)):
            record.exc_info = None  # a user's mistake needs no traceback, nor does a server that is gone
        message = record.getMessage()
        if message.startswith("View at ") and server.is_temporary():
            return False
        if message.startswith("Finished in state "):
            record.msg, record.args = message.splitlines()[0].split("\\n")[0], ()
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(OneLine())
