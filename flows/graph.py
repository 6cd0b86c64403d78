"""The stage graph of dvc.yaml, which stages changed and why, and what dvc.lock says about artifacts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lib.stage import Problem, read_yaml

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCKFILE = Path("dvc.lock")


@dataclass(frozen=True)
class Node:
    """One stage: its name (`sft`, `check@instructions`), its command, the stages it depends on."""

    name: str
    command: str
    upstream: tuple[str, ...]
    params: tuple[str, ...]  # the keys of params.yaml that it reads


@dataclass(frozen=True)
class Graph:
    """Stages in an order that respects their dependencies, and why each would run (empty: unchanged)."""

    nodes: dict[str, Node]
    changes: dict[str, list[str]]

    def edges(self) -> dict[str, tuple[str, ...]]:
        """Stage -> the stages it depends on."""
        return {name: node.upstream for name, node in self.nodes.items()}

    def may_run(self, force: bool) -> set[str]:
        """The stages that changed (with `force` all), and those behind them: whether these run is known later."""
        names: set[str] = set()
        for name, node in self.nodes.items():
            if force or self.changes[name] or names.intersection(node.upstream):
                names.add(name)
        return names


@dataclass(frozen=True)
class Locked:
    """What dvc.lock records for one stage: path -> short hash, of what it read and what it wrote."""

    inputs: dict[str, str]
    outputs: dict[str, str]


# The graph of this run, if whoever starts it has read and checked it already: a flow's parameters are plain values.
# It is not in the flow's own module, of which Prefect sends a copy to the process of a scheduled run.
of_this_run: ContextVar[Graph | None] = ContextVar("of_this_run", default=None)


def read_graph(targets: Sequence[str] = ()) -> Graph:
    """The graph of the targets and all they depend on (default: everything), with the reasons to run each.

    Raises Problem for a broken dvc.yaml or params.yaml, an unknown target, a missing source file.
    """
    import networkx

    with _locked_repo() as repo:
        stages = {stage.addressing: stage for stage in repo.index.graph}
        whole = networkx.relabel_nodes(repo.index.graph, {stage: name for name, stage in stages.items()})
        wanted = set(stages)
        if targets:
            wanted = set(_matching(targets, stages))
            for name in list(wanted):
                wanted |= networkx.descendants(whole, name)  # edges point upstream
        order = networkx.lexicographical_topological_sort(whole.subgraph(wanted).reverse(), key=list(stages).index)
        nodes = {name: _node(stages[name], whole) for name in order}
        _refuse_missing_sources(repo, [stages[name] for name in nodes])
        changes = {}
        for name in nodes:  # not repo.status(targets), which reads dvc.yaml and dvc.lock again for every target
            changes[name] = list(_reasons(stages[name].status().get(name, []), stages[name]))
    return Graph(nodes, changes)


def read_lock(path: Path = LOCKFILE) -> dict[str, Locked]:
    """What dvc.lock records, by stage. After a failed stage its entry is the one of an older run."""
    if not path.is_file():
        return {}
    document = read_yaml(path) or {}
    locked = {}
    for name, stage in (document.get("stages") or {}).items():
        locked[name] = Locked(_short_hashes(stage.get("deps", [])), _short_hashes(stage.get("outs", [])))
    return locked


def _short_hashes(entries: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Path -> the first eight digits of its hash, of the entries under `deps` or `outs`."""
    return {entry["path"]: str(entry.get("md5") or entry.get("etag") or "")[:8] for entry in entries}


@contextmanager
def _locked_repo() -> Iterator[Repo]:
    """DVC in this process. What it raises is a mistake in dvc.yaml or dvc.lock, or another dvc at work."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    try:
        with Repo() as repo, lock_repo(repo):
            yield repo
    except DvcException as error:
        raise Problem(_in_one_line(error)) from None


def _in_one_line(error: BaseException) -> str:
    """DVC's message, and the last line of its cause where that adds something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = str(error.__cause__ or "").strip().splitlines()
    if cause and cause[-1] not in lines:
        lines.append(cause[-1])
    text = " ".join(lines).replace('in "<unicode string>",', "at")
    return f"dvc: {' '.join(text.split())}"


def _matching(targets: Sequence[str], stages: Iterable[str]) -> Iterator[str]:
    """The stages that targets name: one stage, or all of a `foreach` (`check`: `check@instructions`, ...)."""
    for target in targets:
        matches = [name for name in stages if target in (name, name.split("@")[0])]
        if not matches:
            raise Problem(_no_such_stage(target, list(stages)))
        yield from matches


def _no_such_stage(target: str, stages: Sequence[str]) -> str:
    entry = (read_yaml(Path("dvc.yaml")).get("stages") or {}).get(target, {})
    if "foreach" in entry:
        key = str(entry["foreach"]).strip("${}")
        return f"params.yaml: {key} is empty; {target} is a stage per entry"
    hint = f"the stages are {', '.join(stages)}"
    near = difflib.get_close_matches(target, stages, n=1, cutoff=0.4)
    if near:
        hint = f"did you mean {near[0]}?"
    return f"dvc.yaml: there is no stage {target}; {hint}"


def _node(stage: Any, whole: Any) -> Node:
    keys: list[str] = []
    for dep in stage.deps:
        keys += getattr(dep, "params", [])
    command = stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd or [])
    return Node(stage.addressing, command, tuple(sorted(whole.successors(stage.addressing))), tuple(keys))


def _refuse_missing_sources(repo: Repo, stages: Sequence[Any]) -> None:
    outputs = [Path(out.fs_path) for out in repo.index.outs]
    for stage in stages:
        for dep in stage.deps:
            path = Path(dep.fs_path)
            if dep.fs.protocol == "local" and not dep.exists and not _is_made(path, outputs):
                shown = os.path.relpath(path)
                raise Problem(f"{stage.addressing}: {shown} is missing and no stage writes it; put it there")


def _is_made(path: Path, outputs: Sequence[Path]) -> bool:
    """Is the path an output of a stage, in one, or above one?"""
    return any(path == out or path in out.parents or out in path.parents for out in outputs)


def _reasons(status: Sequence[Any], stage: Any) -> Iterator[str]:
    """DVC's status of one stage in words: `params.yaml: sft.epochs 2 -> 3`, `models/sft deleted`."""
    for entry in status:
        if isinstance(entry, str):
            yield entry
            continue
        for changed in entry.values():
            for path, change in changed.items():
                if isinstance(change, dict):
                    yield from _changed_params(path, change, stage)
                else:
                    yield f"{path} {change}"


def _changed_params(path: str, keys: Iterable[str], stage: Any) -> Iterator[str]:
    """The changed values of a file of parameters: those of dvc.lock against those of the file."""
    dep = next(dep for dep in stage.deps if str(dep) == path)
    old, new = dep.hash_info.value or {}, dep.read_params()
    for key in keys:
        for difference in _differences(key, old.get(key), new.get(key)):
            yield f"{path}: {difference}"


def _differences(key: str, old: Any, new: Any) -> Iterator[str]:
    """The leaves that differ between two values of a parameter."""
    if isinstance(old, dict) and isinstance(new, dict):
        for inner in dict.fromkeys([*old, *new]):
            yield from _differences(f"{key}.{inner}", old.get(inner), new.get(inner))
    elif old != new:
        yield f"{key} {old!r} -> {new!r}"
