"""What `anneal run` would run, and why."""

from __future__ import annotations

from collections.abc import Sequence

from flows import workspace
from flows.graph import read_graph

SHOWN_REASONS = 3


def print_status(targets: Sequence[str]) -> None:
    """Print a line per stage: it runs, it may run behind others that do, or it is unchanged."""
    workspace.check()
    graph = read_graph(targets)
    width = max(map(len, graph.nodes), default=0)
    may_run: set[str] = set()
    for name, node in graph.nodes.items():
        behind = [parent for parent in node.upstream if parent in may_run]
        reasons = graph.changes[name][:SHOWN_REASONS]
        if len(graph.changes[name]) > SHOWN_REASONS:
            reasons.append("...")
        if behind or reasons:
            may_run.add(name)
        if reasons:
            print(f"{name:{width}}  runs     {'; '.join(reasons)}")
        elif behind:
            print(f"{name:{width}}  may run  behind {', '.join(behind)}")
        else:
            print(f"{name:{width}}  unchanged")
