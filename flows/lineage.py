"""Lineage of one run: a picture of the graph, a table from dvc.lock, a tag per artifact.

Written to .anneal/lineage.md and .svg for everybody, and as artifacts for the Prefect UI, which has no view
of assets. There the picture is an image with a `data:` URI: Mermaid stays code, inline SVG is stripped.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flows.graph import Locked
from flows.outcome import DONE, Outcome

FOLDER = Path(".anneal")
COLOURS = {  # state -> fill, text
    "Completed": ("#1f8a4c", "#ffffff"),
    "Cached": ("#dbe7f5", "#1c3b5a"),
    "Failed": ("#c62f2f", "#ffffff"),
    "Skipped": ("#eeeeee", "#777777"),
    "Cancelled": ("#e0a020", "#ffffff"),
}
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 136, 34, 24, 26, 14  # of a box, in pixels
ON_THE_WAY = "\0"  # begins the name of a place where an edge passes a row
SHOWN = 6  # hashes or figures in one cell of the table


def tags(outcomes: Mapping[str, Outcome], lock: Mapping[str, Locked]) -> list[str]:
    """`models/ppo@27e42099` for every artifact (not the reports) of the stages that are done."""
    done = [name for name, outcome in outcomes.items() if outcome.state in DONE and name in lock]
    found = {
        f"{path}@{short}"
        for name in done
        for path, short in lock[name].outputs.items()
        if short and not path.startswith("reports")
    }
    return sorted(found)


def markdown(
    outcomes: Mapping[str, Outcome], lock: Mapping[str, Locked], picture: str, reports: Path = Path("reports")
) -> str:
    """The `lineage` page. Hashes and figures only of stages that are done: others have an older run's."""
    lines = [f"![lineage]({picture})", "", "| stage | state | input hashes | output hashes | metrics |"]
    lines.append("|---|---|---|---|---|")
    for name, outcome in outcomes.items():
        known = outcome.state in DONE and name in lock
        entry = lock[name] if known else Locked({}, {})
        cells = [
            f"**{name}**",
            outcome.state,
            _hashes({path: short for path, short in entry.inputs.items() if not path.endswith(".py")}),
            _hashes(entry.outputs),
            _figures(figures(name, reports)) if known else _cell(outcome.reason.splitlines()[:1]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figures(name: str, reports: Path = Path("reports")) -> dict[str, Any]:
    """The flat figures of reports/<stage>.json (`check@rows`: reports/check/rows.json); {} if none."""
    path = reports.joinpath(*name.split("@")).with_suffix(".json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if not isinstance(value, (dict, list))}


def contract(name: str, reports: Path = Path("reports")) -> str:
    """What the report of a check says, as a markdown table of its claims; "" for another stage or no report."""
    try:
        results = json.loads(reports.joinpath(*name.split("@")).with_suffix(".json").read_text())["results"]
        rows = [
            [
                "violated" if result["violations"] else "holds",
                _cell([result["claim"]]),
                f"{result['violations']} of {result['rows']}",
                _cell([", ".join(named(result)[:10])]),
            ]
            for result in results
        ]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    head = ["| state | claim | violations | rows |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def named(result: dict[str, Any]) -> list[str]:
    """The rows that a claim's result names: id (file:row)."""
    pairs = zip_longest(result["ids"], result["places"], fillvalue="")
    return [f"{id} ({place})" if place else id for id, place in pairs]


def key(name: str) -> str:
    """A stage's name as Prefect wants the key of an artifact: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def data_uri(picture: str) -> str:
    """An SVG as an image that markdown can show without a file."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def draw(edges: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome]) -> str:
    """The graph as SVG, top down, a row per distance from the sources, boxes coloured by state."""
    edges = _with_places_on_the_way(_without_shortcuts(edges))
    rows = _rows(edges)
    across = max((len(row) for row in rows), default=0)
    place = {
        name: (MARGIN + (x + (across - len(row)) / 2) * (WIDTH + GAP_X), MARGIN + y * (HEIGHT + GAP_Y))
        for y, row in enumerate(rows)
        for x, name in enumerate(row)
    }
    width = max(across, 1) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    height = max(len(rows), 1) * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    shapes = [_edge(place[above], place[name]) for name in place for above in edges[name]]
    shapes += [_passage(place[name]) for name in place if name.startswith(ON_THE_WAY)]
    shapes += [_box(name, place[name], outcomes.get(name)) for name in place if not name.startswith(ON_THE_WAY)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(shapes)}</svg>\n'
    )


def _depths(edges: Mapping[str, Sequence[str]]) -> dict[str, int]:
    depth: dict[str, int] = {}
    for name in edges:  # in dependency order
        depth[name] = 1 + max((depth[above] for above in edges[name]), default=-1)
    return depth


def _with_places_on_the_way(edges: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """An edge over several rows gets a place of its own in each, so that it passes beside the boxes."""
    depth = _depths(edges)
    longer: dict[str, list[str]] = {}
    for name, parents in edges.items():
        last = []
        for above in parents:
            before = above
            for row in range(depth[above] + 1, depth[name]):
                place = f"{ON_THE_WAY}{above} {row}"
                longer.setdefault(place, [before])
                before = place
            last.append(before)
        longer[name] = last
    return longer


def _rows(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Row = longest way from a source; within it near the middle of what it depends on."""
    depth = _depths(edges)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in edges:
        rows[depth[name]].append(name)
    column: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda name: sum(column[a] for a in edges[name]) / max(1, len(edges[name])))
        column |= {name: index - len(row) / 2 for index, name in enumerate(row)}
    return rows


def _without_shortcuts(edges: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Leave out an edge that a longer way says already: the picture stays readable."""
    above: dict[str, set[str]] = {}
    for name in edges:
        above[name] = set(edges[name]).union(*(above[parent] for parent in edges[name]))
    return {
        name: [p for p in parents if not any(p in above[other] for other in parents if other != p)]
        for name, parents in edges.items()
    }


def _box(name: str, at: tuple[float, float], outcome: Outcome | None) -> str:
    fill, text = COLOURS.get(outcome.state if outcome else "", ("#ffffff", "#777777"))
    note = outcome.state.lower() if outcome else ""
    if outcome and outcome.seconds >= 0.05:
        note += f" {outcome.seconds:.1f} s"
    x, y = at
    middle = x + WIDTH / 2
    return (
        f'<rect x="{x}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="#8899aa"/>'
        f'<text x="{middle:g}" y="{y + 14:g}" text-anchor="middle" font-size="12" font-weight="bold" '
        f'fill="{text}">{escape(name)}</text>'
        f'<text x="{middle:g}" y="{y + 27:g}" text-anchor="middle" font-size="10" '
        f'fill="{text}">{escape(note)}</text>'
    )


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1]
    middle = (y1 + y2) / 2
    return (
        f'<path d="M{x1:g} {y1:g} C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}" '
        'fill="none" stroke="#8899aa" stroke-width="1.3"/>'
    )


def _passage(at: tuple[float, float]) -> str:
    x = at[0] + WIDTH / 2
    return f'<path d="M{x:g} {at[1]:g} V{at[1] + HEIGHT:g}" fill="none" stroke="#8899aa" stroke-width="1.3"/>'


def _hashes(entries: Mapping[str, str]) -> str:
    return _cell([f"{path}@`{short or '?'}`" for path, short in entries.items()])


def _figures(entries: Mapping[str, Any]) -> str:
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in entries.items()}
    return _cell([f"{name} {value}" for name, value in shown.items()])


def _cell(items: Sequence[str]) -> str:
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return ", ".join([*items[:SHOWN], *more]).replace("|", "\\|")
