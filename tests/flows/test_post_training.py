"""The flow runs what changed, caches the rest, keeps failures to their branch, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from small_projects import at_work, wait_until

from flows import outcome
from flows.graph import read_lock
from tasks.lib.stage import Problem, read_yaml


@pytest.fixture
def flow(server: str) -> Callable[..., tuple[Any, dict[str, str]]]:
    """Run the flow in this process; its final state and the state of each stage."""

    def run(**parameters: Any) -> tuple[Any, dict[str, str]]:
        from flows.post_training import post_training

        state = post_training(**parameters, return_state=True)
        return state, {name: entry["state"] for name, entry in outcome.read().get("stages", {}).items()}

    return run


def test_only_what_depends_on_a_change_runs_again(project: Path, flow: Callable[..., Any]) -> None:
    subprocess.run(["dvc", "repro", "-q"], check=True)
    state, _ = flow()
    assert state.message == "6 cached"  # what dvc repro did, the flow need not do

    params = Path("params.yaml")
    params.write_text(params.read_text().replace("2e-5", "3e-5"))
    state, states = flow()
    again = {name for name, ended in states.items() if ended == "Completed"}
    assert again == {"right"}  # its output came out as before: `behind` is unchanged after all
    assert "came out as before" in outcome.read()["stages"]["behind"]["reason"]

    Path("raw.txt").write_text("raw two\n")  # left takes two letters of it, which are the same
    state, states = flow(targets=["ends@a"])
    assert states == {"start": "Completed", "left": "Completed", "ends@a": "Cached"}


def test_a_failure_stays_in_its_branch_and_out_of_the_page(project: Path, flow: Callable[..., Any]) -> None:
    subprocess.run(["dvc", "repro", "-q"], check=True)
    old = read_lock()["right"].outputs["right.txt"]
    Path("raw.txt").write_text("new\n")
    Path("broken").touch()
    state, states = flow()
    assert state.is_failed()
    assert "right: right is broken" in state.message
    assert states.pop("right") == "Failed"
    assert states.pop("behind") == "Skipped"
    assert set(states.values()) == {"Completed"} and len(states) == 4

    seen = states_on_the_server(state)
    assert seen["behind"] == ("CANCELLED", "Skipped")
    assert seen["right"] == ("FAILED", "Failed")

    page = (Path(".anneal") / "lineage.md").read_text()
    assert f"right.txt@`{old}`" not in page  # dvc.lock still has it
    assert f"left.txt@`{read_lock()['left'].outputs['left.txt']}`" in page
    assert "| **right** | Failed |  |  | right is broken |" in page
    assert "loss 0.25" in page
    tags, artifacts = tags_and_artifacts_on_the_server(state)
    assert any(tag.startswith("left.txt@") for tag in tags)
    assert not any(tag.startswith(("right.txt@", "reports")) for tag in tags)
    assert {"lineage", "left"} <= artifacts


def tags_and_artifacts_on_the_server(state: Any) -> tuple[list[str], set[str | None]]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        tags = client.read_flow_run(state.state_details.flow_run_id).tags
        return tags, {artifact.key for artifact in client.read_artifacts()}


def states_on_the_server(state: Any) -> dict[str, tuple[str, str]]:
    """The six task runs as the server has them in the end: name -> type and name of the state."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    run = state.state_details.flow_run_id
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    with get_client(sync_client=True) as client:

        def read() -> dict[str, tuple[str, str]]:
            found = client.read_task_runs(flow_run_filter=chosen)
            return {t.name: (t.state.type.value, str(t.state.name)) for t in found if t.state and t.state.is_final()}

        assert wait_until(lambda: len(read()) == 6)
        return read()


def test_flow_and_dvc_repro_write_the_same_lock(project: Path, flow: Callable[..., Any]) -> None:
    flow(targets=["behind"])
    by_flow = read_yaml(Path("dvc.lock"))
    Path("dvc.lock").unlink()
    subprocess.run(["dvc", "repro", "-q", "--force", "behind"], check=True)
    assert read_yaml(Path("dvc.lock")) == by_flow


def test_a_crash_is_tried_again_and_a_mistake_is_not(project: Path, flow: Callable[..., Any]) -> None:
    crash = "test -e tried || { touch tried; exit 1; }; echo done > out"
    mistake = "echo x >> tries; echo anneal: no such file; exit 1"
    stages = f"stages:\n  crash:\n    cmd: '{crash}'\n    outs: [out]\n  mistake:\n    cmd: '{mistake}'\n"
    Path("params.yaml").unlink()
    Path("dvc.yaml").write_text(stages.replace("anneal: ", "anneal:\\x20").replace("'", '"'))
    _, states = flow(retries=2, retry_delay_seconds=0)
    assert states == {"crash": "Completed", "mistake": "Failed"}
    assert Path("tries").read_text() == "x\n"


def test_a_click_on_cancel_ends_the_stages(endless: Path, flow: Callable[..., Any]) -> None:
    def click() -> None:
        from prefect.client.orchestration import get_client
        from prefect.states import State, StateType

        assert wait_until(Path("pids").exists)
        with get_client(sync_client=True) as client:
            run = client.read_flow_runs(limit=1, sort="START_TIME_DESC")[0]  # type: ignore[arg-type]
            client.set_flow_run_state(run.id, State(type=StateType.CANCELLING))

    thread = threading.Thread(target=click)
    thread.start()
    state, states = flow()
    thread.join()
    assert state.is_cancelled()
    assert states["endless"] == "Cancelled"
    assert not at_work(endless)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_stage_outlives_the_run(
    endless: Path, server: str, start_anneal: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    run = start_anneal("run")
    assert wait_until(Path("pids").exists)
    second = start_anneal("run").communicate()[0]
    assert f"anneal: process {run.pid} on " in second and "Traceback" not in second
    run.send_signal(number)
    output = run.communicate(timeout=300)[0]
    assert wait_until(lambda: not at_work(endless))
    if number != signal.SIGKILL:
        assert output.endswith("anneal: stopped; run it again to continue from the last checkpoints\n")
        assert "Traceback" not in "".join(line for line in output.splitlines() if "endless | " not in line)
        assert run.returncode == 130
        assert outcome.read()["stages"]["endless"]["state"] == "Cancelled"
        assert "| **endless** | Cancelled |" in (Path(".anneal") / "lineage.md").read_text()
    else:
        Path("endless.py").write_text("open('endless.txt', 'w')")
        again = start_anneal("run")
        output = again.communicate(timeout=300)[0]
        assert again.returncode == 0, output


def test_stages_start_when_their_dependencies_ended_and_a_place_is_free() -> None:
    from flows.post_training import in_order

    started: SimpleQueue[str] = SimpleQueue()
    futures: dict[str, Future[None]] = {}

    def start(name: str) -> Future[None]:
        futures[name] = Future()
        started.put(name)
        return futures[name]

    edges = {"a": (), "b": (), "c": ("a",), "d": ()}
    scheduler = threading.Thread(target=in_order, args=(edges, 2, start))
    scheduler.start()
    assert [started.get(timeout=60), started.get(timeout=60)] == ["a", "b"]
    assert started.empty()
    futures["a"].set_result(None)
    assert started.get(timeout=60) == "d"
    futures["b"].set_exception(ValueError("however it ended"))
    assert started.get(timeout=60) == "c"
    futures["c"].set_result(None)
    assert scheduler.is_alive()
    futures["d"].set_result(None)
    scheduler.join(60)
    assert not scheduler.is_alive() and started.empty()


def test_a_problem_before_the_first_stage_fails_the_flow(project: Path, flow: Callable[..., Any]) -> None:
    with pytest.raises(Problem, match="there is no stage nothing"):
        flow(targets=["nothing"])[0].result()
