"""A stage in several processes: reads its launcher, joins the processes, and compares them with what it asks for.

Nothing is launched here. dvc.yaml runs `${sft.launcher} -m tasks.sft`, so the key `launcher` starts the processes:
`python` (one), `torchrun ...` or `accelerate launch --config_file FILE ...`. A launch that went wrong would train in
one process, or in eight that do not know each other, without a word; so every process reads what its launcher was asked
for, and refuses to train otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from tasks.lib.stage import Problem, Stage
from tasks.lib.training.distributed import is_first

PLAIN = "python"  # the launcher that launches nothing
PR_SET_PDEATHSIG = 1
P = TypeVar("P")


@dataclass(frozen=True)
class Launch:
    """What a launcher was asked for.

    `zero` is what the processes share out, as ZeRO counts: 0 nothing, 2 gradients and optimiser, 3 weights too.
    """

    processes: int  # on all machines
    kind: str  # a distributed type of accelerate
    zero: int = 0


_joined: list[tuple[str, Launch]] = []  # the stage of this process and its launch, if there was one


def under_launcher(run: Callable[[P, Stage], None]) -> Callable[[P, Stage], None]:
    """`run(params, stage)`, once this process has joined those that `params.launcher` was to start."""

    def start(params: Any, stage: Stage) -> None:
        if params.launcher != PLAIN:
            launch = read_launcher(params.launcher, stage.name)
            _refuse_here(launch, stage)
            _join(launch, params.launcher, stage)
        run(params, stage)

    return start


def read_launcher(text: str, stage: str) -> Launch:
    """What `torchrun ...` or `accelerate launch ...` asks for; $VARIABLES of the environment are filled in."""
    if text == PLAIN:
        return Launch(1, "NO")
    where = f"params.yaml: {stage}.launcher"
    words = shlex.split(os.path.expandvars(text))
    try:
        if words[:1] == ["torchrun"]:
            return _torchrun(words[1:])
        if words[:2] == ["accelerate", "launch"]:
            return _accelerate(words[2:])
    except (ValueError, TypeError, AttributeError, OSError, SystemExit) as error:
        reason = str(error).splitlines()[0] if str(error) else "not valid"
        raise Problem(f"{where}: {text}: {reason}") from None
    raise Problem(f"{where}: {text}: expected {PLAIN}, torchrun ..., or accelerate launch --config_file FILE")


def _torchrun(words: list[str]) -> Launch:
    from torch.distributed.run import determine_local_world_size, get_args_parser, parse_min_max_nnodes

    asked = _parsed(get_args_parser(), [*words, "-m", "module"])
    fewest, most = parse_min_max_nnodes(asked.nnodes)
    if fewest != most:
        raise ValueError("--nnodes with a range: a changing number of machines gives other batches; give one number")
    return Launch(most * determine_local_world_size(asked.nproc_per_node), _replicated())


def _accelerate(words: list[str]) -> Launch:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    asked = _parsed(launch_command_parser(), [*words, "-m", "module"])
    if not asked.config_file:
        raise ValueError("--config_file is missing: without it, a file in your home folder decides")
    config = load_config_from_file(asked.config_file)
    kind = str(getattr(config.distributed_type, "value", config.distributed_type))
    zero = 0
    if kind.startswith("MULTI_"):
        kind = _replicated()
    elif kind == "FSDP":
        reshards = config.fsdp_config.get("fsdp_reshard_after_forward", True) in (True, "true")
        zero = 3 if reshards else 2
    elif kind == "DEEPSPEED":
        zero = config.deepspeed_config["zero_stage"]
    return Launch(asked.num_processes or config.num_processes, kind, zero)


def _parsed(parser: argparse.ArgumentParser, words: list[str]) -> Any:
    """Parsed words; a ValueError, not a page of usage, when they are wrong."""

    def fail(message: str) -> None:
        raise ValueError(message)

    parser.error = fail  # type: ignore[assignment, method-assign]
    return parser.parse_args(words)


def _replicated() -> str:
    return "MULTI_GPU" if torch.cuda.is_available() else "MULTI_CPU"


def _refuse_here(launch: Launch, stage: Stage) -> None:
    """Problem when this machine or this stage cannot do what the launcher asks for."""
    where = f"params.yaml: {stage.name}.launcher"
    if launch.zero and stage.name == "ppo":
        raise Problem(f"{where}: ppo holds whole models in every process; use torchrun, or configs/ddp.yaml")
    if launch.kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise Problem(f"{where}: deepspeed is not installed; pip install deepspeed, or use configs/fsdp2.yaml")
    if launch.zero and not torch.cuda.is_available():
        raise Problem(f"{where}: {launch.kind} needs GPUs; on a CPU use torchrun --standalone --nproc_per_node 2")


def _join(launch: Launch, launcher: str, stage: Stage) -> None:
    """Join the other processes; Problem when they are not as many as the launcher was asked for."""
    from accelerate import PartialState

    _end_with_parent()
    state = PartialState(cpu=not torch.cuda.is_available())
    torch.set_num_threads(stage.threads)  # the launcher sets one thread if nobody sets a number
    if state.num_processes != launch.processes:
        raise Problem(
            f"{stage.name}: {state.num_processes} of {launch.processes} processes found each other; start it as "
            f"`{launcher} -m tasks.{stage.name}`, and check the addresses of the machines"
        )
    _joined[:] = [(stage.name, launch)]
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  one process talks


def assert_kind(found: Any) -> None:
    """Problem when the distributed type that a Trainer found is not the one that its launcher was asked for."""
    if not _joined:
        return
    stage, asked = _joined[0]
    kind = str(getattr(found, "value", found))
    if kind != asked.kind:
        raise Problem(f"{stage}: trains as {kind}, but {stage}.launcher asks for {asked.kind}; check it")


def _end_with_parent() -> None:
    """On Linux: SIGKILL comes when the launcher is gone, even by SIGKILL, so that nothing is left behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
