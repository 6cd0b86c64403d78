"""A stage in several processes: it starts itself again under the launcher that params.yaml names.

DVC starts `python -m tasks.sft` whatever the parameters are. With `launcher: torchrun --nproc_per_node 2` that process
runs `torchrun --nproc_per_node 2 -m tasks.sft`, waits, and hands on signals and the status. The processes check that
they are as many, and of the kind, that the launcher was asked for: a launch that went wrong trains in one process
without a word.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from tasks.lib.stage import Problem, Stage
from tasks.lib.training.distributed import is_first

LAUNCHED = "ANNEAL_LAUNCHED"  # what the launched processes shall find, as JSON
PLAIN = "python"  # the launcher that launches nothing
PR_SET_PDEATHSIG = 1
P = TypeVar("P")


@dataclass(frozen=True)
class Launch:
    """What a launcher was asked for."""

    command: list[str]  # up to the module, which is to follow
    processes: int  # on all machines
    kind: str  # a distributed type of accelerate
    zero: int = 0  # what the processes share out, as ZeRO counts: 0 nothing, 2 gradients and optimiser, 3 weights too


def under_launcher(run: Callable[[P, Stage], None]) -> Callable[[P, Stage], None]:
    """`run(params, stage)` under `params.launcher`: in this process, or in those that this one starts."""

    def start(params: Any, stage: Stage) -> None:
        if params.launcher == PLAIN:
            run(params, stage)
        elif LAUNCHED not in os.environ:
            launch = read_launcher(params.launcher, stage.name)
            _refuse_here(launch, stage)
            _started(launch, stage)
        else:
            _join(stage)
            with _problem_to_the_starter():
                run(params, stage)

    return start


def read_launcher(text: str, stage: str) -> Launch:
    """What `torchrun ...` or `accelerate launch ...` asks for; $VARIABLES of the environment are filled in."""
    if text == PLAIN:
        return Launch([sys.executable, "-m"], 1, "NO")
    where = f"params.yaml: {stage}.launcher"
    words = shlex.split(os.path.expandvars(text))
    try:
        if words[:1] == ["torchrun"]:
            return _torchrun(words[1:])
        if words[:2] == ["accelerate", "launch"]:
            return _accelerate(words[2:])
    except (ValueError, TypeError, AttributeError, OSError, SystemExit) as error:
        raise Problem(f"{where}: {text}: {str(error).splitlines()[0] if str(error) else 'not valid'}") from None
    raise Problem(f"{where}: {text}: expected {PLAIN}, torchrun ..., or accelerate launch --config_file FILE")


def _torchrun(words: list[str]) -> Launch:
    from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes

    asked = _quiet(get_args_parser(), [*words, "-m", "module"])
    fewest, most = parse_min_max_nnodes(asked.nnodes)
    if fewest != most:
        raise ValueError("--nnodes with a range: a changing number of machines gives other batches; name one")
    alone = most == 1 and not any(word.startswith(("--rdzv", "--master", "--standalone")) for word in words)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(["--standalone"] if alone else []),
        *words,
        "-m",
    ]
    return Launch(command, most * determine_local_world_size(asked.nproc_per_node), _replicated())


def _accelerate(words: list[str]) -> Launch:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    asked = _quiet(launch_command_parser(), [*words, "-m", "module"])
    if not asked.config_file:
        raise ValueError("--config_file is missing: without it a file in your home decides")
    config = load_config_from_file(asked.config_file)
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    if kind.startswith("MULTI_"):
        kind = _replicated()
    zero = 0
    if kind == "FSDP":
        zero = 3 if config.fsdp_config.get("fsdp_reshard_after_forward", True) in (True, "true") else 2
    elif kind == "DEEPSPEED":
        zero = config.deepspeed_config["zero_stage"]
    on_cpu = [] if torch.cuda.is_available() or asked.cpu else ["--cpu"]
    alone = (asked.num_machines or config.num_machines) == 1 and asked.main_process_port is None
    port = ["--main_process_port", "0"] if alone and config.main_process_port is None else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *on_cpu, *port, *words, "-m"]
    return Launch(command, asked.num_processes or config.num_processes, kind, zero)


def _quiet(parser: argparse.ArgumentParser, words: list[str]) -> Any:
    """Parsed words; a ValueError, not a page of usage, when they are wrong."""

    def fail(message: str) -> None:
        raise ValueError(message)

    parser.error = fail  # type: ignore[assignment, method-assign]
    return parser.parse_args(words)


def _replicated() -> str:
    return "MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU"


def _refuse_here(launch: Launch, stage: Stage) -> None:
    """Problem when this machine or this stage cannot do what the launcher asks for."""
    from importlib.util import find_spec

    where = f"params.yaml: {stage.name}.launcher"
    if launch.zero and stage.name == "ppo":
        raise Problem(f"{where}: ppo holds whole models in every process; use torchrun, or configs/ddp.yaml")
    if launch.kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise Problem(f"{where}: deepspeed is not installed; pip install deepspeed, or use configs/fsdp2.yaml")
    if launch.zero and not torch.cuda.is_available():
        raise Problem(f"{where}: {launch.kind} needs GPUs; on a CPU use torchrun --nproc_per_node 2")


def _started(launch: Launch, stage: Stage) -> None:
    """Run the launcher to its end. A Problem of one of its processes is this one's."""
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem"
        asked = asdict(launch) | {"stage": stage.name, "problem": str(problem)}
        environment = os.environ | {LAUNCHED: json.dumps(asked), "OMP_NUM_THREADS": str(stage.threads)}
        process = subprocess.Popen(
            [*launch.command, f"tasks.{stage.name}"],
            env=environment,
            preexec_fn=_end_with_parent(signal.SIGTERM),
        )
        signals: list[int] = []

        def hand_on(number: int, _: Any) -> None:
            signals.append(number)
            process.send_signal(number)

        earlier = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = process.wait()
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        if signals:
            raise SystemExit(128 + signals[0])
        if problem.exists():
            raise Problem(problem.read_text(encoding="utf-8"))
        if status:
            raise Problem(f"{stage.name}: {stage.name}.launcher ended with status {status}; the lines above say why")


def _join(stage: Stage) -> None:
    """Join the other processes, and check that they are those that were asked for."""
    from accelerate import PartialState

    asked = json.loads(os.environ[LAUNCHED])
    _end_with_parent(signal.SIGKILL)()
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.set_num_threads(stage.threads)
    if state.num_processes != asked["processes"]:
        raise Problem(
            f"{stage.name}: {state.num_processes} processes found each other, {asked['processes']} were asked "
            f"for; check {stage.name}.launcher and the addresses of the machines"
        )
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  one process talks


def assert_kind(found: Any) -> None:
    """Problem when the distributed type that a Trainer found is not the one that its launcher was asked for."""
    if LAUNCHED in os.environ:
        asked, kind = json.loads(os.environ[LAUNCHED]), str(getattr(found, "value", found))
        if kind != asked["kind"]:
            stage = asked["stage"]
            raise Problem(f"{stage}: trains as {kind}, but {stage}.launcher asks for {asked['kind']}; check it")


@contextlib.contextmanager
def _problem_to_the_starter() -> Any:
    """A Problem is said once, by the process that started the launcher, after what the launcher prints."""
    try:
        yield
    except Problem as problem:
        Path(json.loads(os.environ[LAUNCHED])["problem"]).write_text(str(problem), encoding="utf-8")
        raise SystemExit(1) from None


def _end_with_parent(number: int) -> Callable[[], None]:
    """On Linux: the signal comes when the parent is gone, SIGKILL included, so that no process is left behind."""

    def ask() -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)

    return ask
