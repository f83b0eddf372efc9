"""The pipeline as a picture: the steps as boxes in the order of their dependence, marked with what became of them.

The same layout is drawn twice, left to right for a wide page and top to bottom for a telephone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from markupsafe import Markup

from speculators.amounts import time_text

BOX_WIDTH, BOX_HEIGHT, GAP = 104, 58, 24
MARKS = {
    "finished": "ran",
    "cached": "cached",
    "failed": "failed",
    "running": "running",
    "interrupted": "stopped",
    "pending": "not run",
    "skipped": "not needed",
}
"""What a step's box says for each status."""


@dataclass(frozen=True)
class Box:
    """One step: where its box's upper left corner lies, its name in one or two lines, its status and seconds."""

    x: float
    y: float
    lines: tuple[str, ...]
    status: str
    note: str


def picture(
    inputs: Mapping[str, tuple[str, ...]], steps: Mapping[str, Mapping[str, Any]], *, downward: bool = False
) -> Markup:
    """An inline SVG of the graph `inputs` (step -> its inputs), with each step's `status` and `seconds`."""
    known = {name: tuple(source for source in inputs.get(name, ()) if source in steps) for name in steps}
    layers = _layers(known)
    if not layers:
        return Markup("")
    widest = max(len(layer) for layer in layers)
    along, across = (BOX_HEIGHT + GAP, BOX_WIDTH + 12) if downward else (BOX_WIDTH + GAP, BOX_HEIGHT + 14)
    rank = {name: index for index, layer in enumerate(layers) for name in layer}
    boxes: dict[str, Box] = {}
    for index, layer in enumerate(layers):
        for row, name in enumerate(layer):
            a, b = index * along + 1, (row + (widest - len(layer)) / 2) * across + 1
            step = steps[name]
            boxes[name] = Box(b if downward else a, a if downward else b, _lines(name), step["status"], _note(step))
    edges = [(source, name) for name, sources in _without_detours(known).items() for source in sources]
    lane = widest * across - 2
    has_lane = any(rank[name] > rank[source] + 1 for source, name in edges)
    lines = [
        _edge(boxes[source], boxes[name], downward, lane if rank[name] > rank[source] + 1 else None)
        for source, name in edges
    ]
    length = len(layers) * along - GAP + 2
    breadth = widest * across - (12 if downward else 14) + (16 if has_lane else 2)
    width, height = (breadth, length) if downward else (length, breadth)
    return Markup(
        '<svg class="graph {}" viewBox="0 0 {} {}" style="max-width:{}px" role="img" aria-label="{}">\n{}\n</svg>'
    ).format(
        "downward" if downward else "rightward",
        width,
        height,
        round(width * 1.08),
        "The steps of the run: " + ", ".join(f"{name} {steps[name]['status']}" for name in steps),
        Markup("\n").join([*lines, *(_box(box) for box in boxes.values())]),
    )


def spoken(seconds: float | None) -> str:
    """Seconds as people say them; a dash for what is not known."""
    return time_text(seconds) or "–"


def _layers(inputs: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Steps in layers, each as late as its dependents allow, so that what is compared stands side by side."""
    after: dict[str, list[str]] = {name: [] for name in inputs}
    for name, sources in inputs.items():
        for source in sources:
            after[source].append(name)
    height: dict[str, int] = {}
    for name in reversed(list(TopologicalSorter(inputs).static_order())):
        height[name] = 1 + max((height[follower] for follower in after[name]), default=-1)
    layers: list[list[str]] = [[] for _ in range(max(height.values(), default=-1) + 1)]
    for name in inputs:
        layers[-1 - height[name]].append(name)
    return layers


def _without_detours(inputs: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """The direct inputs that are not reached through another input as well: the picture stays readable."""

    def before(name: str, seen: frozenset[str] = frozenset()) -> set[str]:
        found: set[str] = set()
        for source in inputs.get(name, ()):
            if source not in seen:
                found |= {source} | before(source, seen | {name})
        return found

    return {
        name: [source for source in sources if not any(source in before(other) for other in sources if other != source)]
        for name, sources in inputs.items()
    }


def _lines(name: str) -> tuple[str, ...]:
    return tuple(part.replace("_", " ") for part in name.split("-", 1))


def _note(step: Mapping[str, Any]) -> str:
    seconds = step.get("seconds") if step["status"] in {"finished", "failed"} else step.get("seconds_when_made")
    mark: str = MARKS.get(step["status"], step["status"])
    if seconds is None or step["status"] in {"pending", "skipped"}:
        return mark
    # A box has no room for seconds behind minutes.
    return f"{mark} · {round(seconds / 60)} min" if 120 <= seconds < 3570 else f"{mark} · {spoken(seconds)}"


def _edge(source: Box, target: Box, downward: bool, lane: float | None) -> Markup:
    """A curve to the next layer; farther on, a line through the gap, along the `lane` beside all boxes, and back."""
    if downward:
        start = (source.y + BOX_HEIGHT, source.x + BOX_WIDTH / 2)
        end = (target.y, target.x + BOX_WIDTH / 2)
    else:
        start = (source.x + BOX_WIDTH, source.y + BOX_HEIGHT / 2)
        end = (target.x, target.y + BOX_HEIGHT / 2)
    (a1, b1), (a2, b2) = start, end  # a: along the flow, b: across it
    half = (a1 + a2) / 2
    moves: list[tuple[str, list[tuple[float, float]]]]
    if lane is None:
        moves = [("M", [(a1, b1)]), ("C", [(half, b1), (half, b2), (a2, b2)])]
    else:
        out, back, r = a1 + GAP / 2, a2 - GAP / 2, GAP / 2 - 3
        moves = [
            ("M", [(a1, b1)]),
            ("L", [(out - r, b1)]),
            ("Q", [(out, b1), (out, b1 + r)]),
            ("L", [(out, lane - r)]),
            ("Q", [(out, lane), (out + r, lane)]),
            ("L", [(back - r, lane)]),
            ("Q", [(back, lane), (back, lane - r)]),
            ("L", [(back, b2 + r)]),
            ("Q", [(back, b2), (back + r, b2)]),
            ("L", [(a2, b2)]),
        ]
    path = "".join(
        letter + " ".join(f"{b:g} {a:g}" if downward else f"{a:g} {b:g}" for a, b in points) for letter, points in moves
    )
    return Markup('<path class="edge" d="{}"/>').format(path)


def _box(box: Box) -> Markup:
    middle = box.x + BOX_WIDTH / 2
    top = box.y + (25 if len(box.lines) == 1 else 18)
    names = [
        Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
            "name" if index == 0 else "name second", f"{middle:g}", f"{top + 13.5 * index:g}", line
        )
        for index, line in enumerate(box.lines)
    ]
    return Markup(
        '<g class="step {}"><rect x="{}" y="{}" width="{}" height="{}" rx="8"/>{}'
        '<text class="note" x="{}" y="{}">{}</text></g>'
    ).format(
        box.status,
        f"{box.x:g}",
        f"{box.y:g}",
        BOX_WIDTH,
        BOX_HEIGHT,
        Markup("").join(names),
        f"{middle:g}",
        f"{box.y + BOX_HEIGHT - 11:g}",
        box.note,
    )
