"""Children die with the run, however it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_projects import ENDLESS_STAGE, ROOT, at_work, wait_until

from flows.child import Children

PARENT = """
import sys
from flows.child import Children
Children().run([sys.executable, "endless.py"], print)
"""


def test_output_arrives_line_by_line_and_the_status_is_the_childs(workspace: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); print('two\\rthree', file=sys.stderr); sys.exit(7)"
    ended = Children().run([sys.executable, "-c", code], lines.append)
    assert sorted(lines) == ["one", "three", "two"]
    assert ended.status == 7
    assert sorted(ended.tail) == sorted(lines)


def test_this_python_comes_first_in_the_childs_path(workspace: Path) -> None:
    lines: list[str] = []
    Children().run(["sh", "-c", "command -v python"], lines.append)
    assert Path(lines[0]).parent == Path(sys.executable).parent


def test_what_a_finished_stage_leaves_running_is_ended(workspace: Path) -> None:
    Children().run(["sh", "-c", f"{sys.executable} -S -c 'import time; time.sleep(600)' & exit 0"], print)
    assert not at_work(workspace)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_outlives_its_parent(workspace: Path, number: signal.Signals) -> None:
    Path("endless.py").write_text(ENDLESS_STAGE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stderr=subprocess.DEVNULL)
    assert wait_until(Path("pids").exists)
    assert len(at_work(workspace)) == 4  # the parent, the watchdog, the stage, its grandchild
    parent.send_signal(number)
    parent.wait(120)
    assert wait_until(lambda: not at_work(workspace))


def test_stop_sends_sigint_first_so_that_a_stage_can_save(workspace: Path) -> None:
    code = "import time, pathlib\ntry: print('up', flush=True); time.sleep(600)\nfinally: open('saved', 'w')"
    children = Children()
    ended = children.run([sys.executable, "-c", code], lambda _: stop_soon(children))
    assert Path("saved").exists()
    assert ended.status != 0
    assert children.run(["true"], print).status == 130  # nothing starts after stop


def stop_soon(children: Children) -> None:
    import threading

    threading.Thread(target=children.stop, daemon=True).start()


def test_a_watchdog_costs_little(workspace: Path) -> None:
    started = time.process_time(), psutil.Process().cpu_times().children_user
    Children().run(["true"], print)
    assert time.process_time() - started[0] < 0.2
    assert psutil.Process().cpu_times().children_user - started[1] < 0.3
