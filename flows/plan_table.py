"""The plan as a table, and what of it does not fit a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import plan
from flows.memory import Device
from flows.plan import Need
from tasks.lib.stage import Problem

LIBRARIES = 0.55e9  # bytes of a process that has imported torch, transformers and TRL on a CPU
LIGHTER = {"reward": 0.50e9}  # of a stage that imports no TRL
COLUMNS = ("weights", "training", "activations", "KV cache", "memory", "FLOPs", "time", "disk")


def show(document: Mapping[str, Any], targets: Sequence[str], device_name: str, config: Path | None) -> None:
    """Print the table of the targets (default: all stages with a plan); Problem when one of them does not fit."""
    device = plan.device_of(device_name, document["threads"])
    sections = plan.read_sections(document)
    shape = plan.shape_of(sections.base, config)
    needs = plan.needs(sections, shape, device)
    for target in targets:
        if target not in needs:
            raise Problem(f"there is no plan for {target}; stages with a plan: {', '.join(needs)}")
    if targets:
        needs = {stage: need for stage, need in needs.items() if stage in targets}
    print(f"{shape.parameters:,} parameters; memory, FLOPs and time of one {device_name}")
    print(f"{'':8}" + "".join(f"{column:>12}" for column in COLUMNS))
    for stage, need in needs.items():
        print(f"{stage:8}" + "".join(f"{cell:>12}" for cell in _cells(stage, need, device)))
    print(_disk(needs))
    for stage, need in needs.items():
        if need.host:
            print(f"{stage}: {_bytes(need.host)} of the machine's own memory, for it works on the CPU there")
    for stage, launch in plan.launches(sections).items():
        if launch.processes > 1 and stage in needs:
            print(f"{stage}: {launch.processes} devices, sharded as by ZeRO {launch.zero}")
    print("times rest on assumed speeds: a GPU at 0.35 of its data sheet, a CPU thread at 60 GFLOPS")
    lines = _too_large(needs, device)
    if lines:
        raise Problem("\n".join(lines.values()))


def too_large(document: Mapping[str, Any], device: Device, config: Path | None) -> dict[str, str]:
    """Stage -> why it does not fit; none, and a line of output, when the model's size is not known."""
    sections = plan.read_sections(document)
    try:
        shape = plan.shape_of(sections.base, config)
    except Problem as problem:
        print(f"anneal: not planned: {problem}")
        return {}
    return _too_large(plan.needs(sections, shape, device), device)


def _too_large(needs: Mapping[str, Need], device: Device) -> dict[str, str]:
    lines = {}
    for stage, need in needs.items():
        memory = memory_of(stage, need, device)
        if memory > device.memory:
            lines[stage] = f"{stage} needs {_bytes(memory)}, the device has {_bytes(device.memory)}"
    return lines


def _disk(needs: Mapping[str, Need]) -> str:
    """What the stages leave on the disk, and the most that is there while one of them runs."""
    kept, most, largest = 0.0, 0.0, ""
    for stage, need in needs.items():
        kept += need.disk
        if kept + need.scratch > most:
            most, largest = kept + need.scratch, stage
    return f"disk: {_bytes(kept)} at the end, at most {_bytes(most)}, in {largest}; DVC's cache links to the same files"


def memory_of(stage: str, need: Need, device: Device) -> float:
    """What the stage needs, and on a CPU its libraries."""
    if device.is_gpu:
        return need.memory
    return need.memory + LIGHTER.get(stage, LIBRARIES)


def _cells(stage: str, need: Need, device: Device) -> list[str]:
    memory = memory_of(stage, need, device)
    mark = " !" if memory > device.memory else ""
    operations, time = "?", "?"
    if need.operations is not None:
        operations, time = f"{need.operations:.1e}", _time(need.operations / device.speed)
    parts = [need.weights, need.training, need.activations, need.cache]
    return [*map(_bytes, parts), _bytes(memory) + mark, operations, time, _bytes(need.disk + need.scratch)]


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    if count:
        return f"{count / 1e3:.0f} kB"
    return "-"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 1:
        return f"{seconds:.0f} s"
    return "-"
