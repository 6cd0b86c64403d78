"""The deployment fits the flow, and a schedule fires with the versions that are installed."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from small_projects import ROOT, at_work, wait_until

from flows import child
from tasks.lib.stage import read_yaml

SERVE = """
from flows.post_training import post_training
post_training.serve(name="scheduled", interval=20, limit=1, parameters={"targets": ["left"]})
"""


def test_the_deployment_names_the_flow_and_its_parameters() -> None:
    deployment = read_yaml(ROOT / "prefect.yaml")["deployments"][0]
    file, name = deployment["entrypoint"].split(":")
    flow = getattr(import_module(file.removesuffix(".py").replace("/", ".")), name)
    known = inspect.signature(flow.fn).parameters
    assert deployment["name"] == flow.name
    assert deployment["parameters"].keys() == known.keys()


@pytest.mark.slow
def test_a_schedule_fires(project: Path, server: str) -> None:
    environment = child.child_environment() | {"PYTHONPATH": str(ROOT)}
    log = (project / "serve.log").open("w")
    serving = subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdout=log, stderr=log)
    try:
        record = project / ".anneal" / "run.json"
        assert wait_until(record.exists, 240), (project / "serve.log").read_text()
        assert json.loads(record.read_text())["stages"].keys() == {"start", "left"}
        assert os.environ["PREFECT_API_URL"] == server
    finally:
        serving.kill()
        for process in at_work(project):
            process.kill()
        serving.wait()
        log.close()
