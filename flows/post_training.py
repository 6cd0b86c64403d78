"""The post-training flow: bring every stage of dvc.yaml up to date, in order, and say what became of each.

What runs is decided by dvc.yaml and dvc.lock alone; each changed stage is brought up to date by DVC in a child
process (dvc_child.py), as `dvc repro --single-item` would do it, so `dvc repro` and this flow write the same
dvc.lock. Prefect adds when it runs, what happens when a stage fails, and where one can look. Run it with `anneal
run`, or as a deployment (prefect.yaml).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from graphlib import TopologicalSorter
from threading import Event, Thread
from typing import Any

from flows import telemetry

telemetry.switch_off()  # before prefect is imported: it asks at import

from prefect import allow_failure, flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.objects import StateDetails, TaskRun  # noqa: E402
from prefect.context import FlowRunContext  # noqa: E402
from prefect.states import Cancelled, Completed, Failed, State  # noqa: E402

from flows import child, graph, lineage, outcome, params, picture, prefect_log, reports, warm, workspace  # noqa: E402
from flows.child import Children  # noqa: E402
from flows.graph import Graph, read_graph, read_lock  # noqa: E402
from flows.outcome import DONE, STATES, Outcome  # noqa: E402
from flows.prefect_log import server_may_be_gone  # noqa: E402
from flows.repro import bring_up_to_date  # noqa: E402

CANCEL_POLL_SECONDS = 3.0
prefect_log.shorten()


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
        stages = graph.of_this_run.get() or checked_graph(targets or ())
        run = Run(stages, Children((lock,)), force)

        def may_pass_next_time(_task: Any, task_run: TaskRun, _state: State) -> bool:
            """A user's mistake stays one; a crash may not happen again."""
            result = run.outcomes.get(task_run.name)
            return result is None or not result.is_mistake

        one_stage = stage_run.with_options(
            retries=retries, retry_delay_seconds=retry_delay_seconds, retry_condition_fn=may_pass_next_time
        )

        def start(name: str) -> Future[Any]:
            upstream = [edge(above, run) for above in run.graph.nodes[name].upstream]
            run.futures[name] = one_stage.submit(name, run, wait_for=upstream)  # type: ignore[call-overload]
            return run.futures[name].wrapped_future

        ready = child.warm_process(lock) if warm.is_wanted(run.graph, force) else nullcontext()
        with ready, recorded(run), stopped_at_the_end(run), stopped_when_cancelled(run.children):
            in_order(run.graph.edges(), parallel, start)
        show_lineage(run)
        return final_state(run)


def checked_graph(targets: Sequence[str]) -> Graph:
    """The graph of the targets, when every section of params.yaml is valid."""
    params.check()
    return read_graph(targets)


def edge(upstream: str, run: Run) -> Any:
    """What a stage waits for, in Prefect's terms; the stage `upstream` of it has ended.

    When `reward` failed, `ppo` has to start all the same, to become `Skipped` by our own rule. `allow_failure` would
    let it pass behind a failed task run, but not behind a cancelled one (what is `Skipped` here): it would stay
    `NotReady`. So both are given to it as failed, and Prefect draws the edge from `reward` to `ppo`.
    """
    future, result = run.futures[upstream], run.outcomes.get(upstream)
    if result is not None and result.state in DONE:
        return future
    return allow_failure(Failed(state_details=StateDetails(task_run_id=future.task_run_id)))


@task(task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def stage_run(name: str, run: Run) -> State:
    """One stage: skipped, cached, or run by DVC in a child process. Its figures become a table artifact."""
    log = get_run_logger()
    result = bring_up_to_date(name, run.graph, run.outcomes, run.children, force=run.force, on_line=log.info)
    run.outcomes[name] = result
    with server_may_be_gone(log):
        show_reports(name, result)
    match result.state:
        case "Completed" | "Cached":
            return Completed(name=result.state, message=result.reason)
        case "Failed":
            message = f"{result.reason}\n\n{result.tail}" if result.tail else result.reason
            return Failed(message=message)
        case "Skipped" | "Cancelled":
            return Cancelled(name=result.state, message=result.reason)


def show_reports(name: str, result: Outcome) -> None:
    """The reports of a stage as artifacts of its task run: its figures, and the claims of a check."""
    if result.state in DONE:
        figures = reports.figures(name)
        if figures:
            table = [{"figure": figure, "value": str(value)} for figure, value in figures.items()]
            create_table_artifact(table, key=lineage.key(name), description=f"Figures of {name}")
    if result.state in DONE or result.is_violation:
        page = lineage.contract(name)
        if page:
            create_markdown_artifact(page, key=f"contract-{lineage.key(name)}", description=f"Claims of {name}")


class Run:
    """What the flow and its task runs share: the graph, the child processes, how each stage ended."""

    def __init__(self, graph: Graph, children: Children, force: bool) -> None:
        self.graph = graph
        self.children = children
        self.force = force
        self.outcomes: dict[str, Outcome] = {}
        self.futures: dict[str, Any] = {}
        self.before = {name: reports.figures(name) for name in graph.nodes}
        self.started = time.monotonic()

    def ended(self) -> dict[str, Outcome]:
        """The stages that have ended, in the order of the graph."""
        return {name: self.outcomes[name] for name in self.graph.nodes if name in self.outcomes}


def in_order(edges: Mapping[str, Sequence[str]], parallel: int, start: Callable[[str], Future[Any]]) -> None:
    """Start each stage once all it depends on has ended, at most `parallel` at a time, and wait for the last one.

    `start` returns a future that is done when the stage has ended, however it ended.
    """
    sorter = TopologicalSorter(edges)
    sorter.prepare()
    ready: list[str] = []
    running: dict[Future[Any], str] = {}
    while sorter.is_active():
        ready += sorter.get_ready()
        while ready and len(running) < max(1, parallel):
            name = ready.pop(0)
            running[start(name)] = name
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            sorter.done(running.pop(future))


def final_state(run: Run) -> State:
    """Completed, or Failed naming the stages that failed, or Cancelled."""
    stages_by_state: dict[str, list[str]] = {state: [] for state in STATES}
    for name, result in run.outcomes.items():
        stages_by_state[result.state].append(name)
    counts = ", ".join(f"{len(names)} {state.lower()}" for state, names in stages_by_state.items() if names)
    if stages_by_state["Cancelled"]:
        return Cancelled(message=f"stopped: {counts}")
    failures = [f"{name}: {run.outcomes[name].reason}" for name in stages_by_state["Failed"]]
    if failures:
        return Failed(message=f"{counts}: {'; '.join(failures)}")
    return Completed(message=counts)


@contextmanager
def stopped_at_the_end(run: Run) -> Iterator[None]:
    """No child outlives the flow: SIGTERM and Ctrl-C arrive as exceptions in the flow's thread."""
    try:
        yield
    finally:
        run.children.stop()
        for future in run.futures.values():
            future.wait(10)  # until its outcome is known


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
    """Write what became of the run into .anneal/, however it ends: Ctrl-C and SIGTERM arrive here as exceptions."""
    try:
        yield
    finally:
        ended = run.ended()
        outcome.write(ended, run.before, time.monotonic() - run.started)
        (lineage.FOLDER / "lineage.svg").write_text(picture.draw(run.graph.edges(), ended), encoding="utf-8")
        page = lineage.markdown(ended, read_lock(), "lineage.svg")
        (lineage.FOLDER / "lineage.md").write_text(page, encoding="utf-8")


def show_lineage(run: Run) -> None:
    """The lineage page that `recorded` wrote as an artifact of the flow run, and the hashes in it as tags.

    A run that is stopped has neither."""
    ended, lock = run.ended(), read_lock()
    image = lineage.data_uri((lineage.FOLDER / "lineage.svg").read_text(encoding="utf-8"))
    with server_may_be_gone(get_run_logger()):
        page = lineage.markdown(ended, lock, image)
        create_markdown_artifact(page, key="lineage", description="The graph, its hashes and figures")
        context = FlowRunContext.get()
        if context and context.flow_run:
            with get_client(sync_client=True) as client:
                tags = {*context.flow_run.tags, *lineage.tags(ended, lock)}
                client.update_flow_run(context.flow_run.id, tags=sorted(tags))
