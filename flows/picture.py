"""The graph of a run as SVG: a box per stage, coloured by what became of it, a line per direct dependency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import networkx
from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout, VertexViewer

from flows.outcome import Outcome, StageState

COLOURS: dict[StageState, tuple[str, str]] = {  # of the box and of its text
    "Completed": ("#1f8a4c", "#ffffff"),
    "Cached": ("#dbe7f5", "#1c3b5a"),
    "Failed": ("#c62f2f", "#ffffff"),
    "Skipped": ("#eeeeee", "#777777"),
    "Cancelled": ("#e0a020", "#ffffff"),
}
NOT_RUN = ("#ffffff", "#777777")
LINE = 'fill="none" stroke="#8899aa" stroke-width="1.3"'
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 136, 34, 24, 26, 14  # of a box, in pixels
LANE = 8  # what a line over several rows takes in each of them

Point = tuple[float, float]


class LineViewer:
    """What grandalf hands the points of a line to."""

    points: list[Point]

    def setpath(self, points: list[Point]) -> None:
        self.points = points


def draw(edges: Mapping[str, Sequence[str]], outcomes: Mapping[str, Outcome]) -> str:
    """The graph as SVG, top down; `edges`: stage -> the stages it depends on."""
    boxes, lines = _layout(_direct(edges))
    width = MARGIN + max((x + WIDTH / 2 for x, _ in boxes.values()), default=MARGIN)
    height = MARGIN + max((y + HEIGHT / 2 for _, y in boxes.values()), default=MARGIN)
    for line in lines:
        width = max(width, MARGIN + max(x for x, _ in line))
    shapes = [_line(line) for line in lines]
    shapes += [_box(name, centre, outcomes.get(name)) for name, centre in boxes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(shapes)}</svg>\n'
    )


def _direct(edges: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The edges without those that a longer way implies: the picture stays readable."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(edges)
    for name, parents in edges.items():
        for parent in parents:
            graph.add_edge(parent, name)
    reduced = networkx.transitive_reduction(graph)
    direct = {}
    for name, parents in edges.items():  # in their order, so that the picture is the same each time
        direct[name] = [parent for parent in parents if reduced.has_edge(parent, name)]
    return direct


def _layout(edges: Mapping[str, Sequence[str]]) -> tuple[dict[str, Point], list[list[Point]]]:
    """The centre of each stage's box, and the points of each line: a box, a place in each row between, a box.

    By Sugiyama's method: a row per distance from the sources, few crossings. Parts without a connection are laid out
    one by one, side by side.
    """
    vertices = {}
    for name in edges:
        vertices[name] = Vertex(name)
        vertices[name].view = VertexViewer(WIDTH, HEIGHT)
    lines = []
    for name, parents in edges.items():
        for parent in parents:
            line = Edge(vertices[parent], vertices[name])
            line.view = LineViewer()
            lines.append(line)
    left = float(MARGIN)
    for part in Graph(list(vertices.values()), lines).C:
        layout = SugiyamaLayout(part)
        layout.xspace, layout.yspace, layout.dw = GAP_X, GAP_Y, LANE
        layout.init_all()
        places = layout.grx  # the boxes, and the places where a line passes a row
        layout.draw()
        shift = left - min(place.view.xy[0] - place.view.w / 2 for place in places)
        for place in places:
            x, y = place.view.xy
            place.view.xy = (x + shift, y + MARGIN)
        layout.draw_edges()
        left = GAP_X + max(place.view.xy[0] + place.view.w / 2 for place in places)
    boxes = {name: vertex.view.xy for name, vertex in vertices.items()}
    return boxes, [line.view.points for line in lines]


def _box(name: str, centre: Point, outcome: Outcome | None) -> str:
    fill, text = NOT_RUN
    note = ""
    if outcome is not None:
        fill, text = COLOURS[outcome.state]
        note = outcome.state.lower()
        if outcome.seconds >= 0.05:
            note += f" {outcome.seconds:.1f} s"
    x, y = centre
    return (
        f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="#8899aa"/>'
        f'<text x="{x:g}" y="{y - 3:g}" text-anchor="middle" font-size="12" font-weight="bold" '
        f'fill="{text}">{escape(name)}</text>'
        f'<text x="{x:g}" y="{y + 10:g}" text-anchor="middle" font-size="10" fill="{text}">{escape(note)}</text>'
    )


def _line(points: Sequence[Point]) -> str:
    """From the bottom of a box to the top of another; straight down through the rows between them."""
    x, y = points[0][0], points[0][1] + HEIGHT / 2
    path = f"M{x:g} {y:g}"
    for end_x, centre_y in points[1:]:
        top, bottom = centre_y - HEIGHT / 2, centre_y + HEIGHT / 2
        bend = (y + top) / 2
        path += f" C{x:g} {bend:g} {end_x:g} {bend:g} {end_x:g} {top:g}"
        if (end_x, centre_y) != points[-1]:
            path += f" V{bottom:g}"
        x, y = end_x, bottom
    return f'<path d="{path}" {LINE}/>'
