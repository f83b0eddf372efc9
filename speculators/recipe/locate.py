"""Where every value of a composed recipe came from: a file and a place in it, `--set`, or the schema's default."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from speculators.errors import Place, Problem
from speculators.recipe.nodes import Node, Path_, Text

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def parts(path: str) -> Path_:
    """`data.sources[0].file` as its keys and list positions."""
    return tuple(int(number) if number else word for word, number in _PART.findall(path))


def in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Problems by place, each said once; at the same place, as they were found."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.place))


@dataclass(frozen=True)
class Origins:
    """The merged tree with its places; `text` is the recipe that was asked for."""

    root: Node
    text: Text

    def find(self, path: Path_) -> Node | None:
        """What was written at exactly this path."""
        node = self.root
        for part in path:
            below: Node | None = None
            if isinstance(node.value, dict) and isinstance(part, str):
                below = node.value.get(part)
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                below = node.value[part]
            if below is None:
                return None
            node = below
        return node

    def problem(self, path: Path_, what: str, hint: str = "") -> Problem:
        """A problem with the value at a path, shown where its key stands, or that of the nearest section around it."""
        for length in range(len(path), 0, -1):
            node = self.find(path[:length])
            if node is not None:
                return node.problem(what, hint, at_key=True)
        return Problem(Place(self.text.name, 1, 1), what, hint)

    def origin(self, path: str) -> str:
        """Where a value comes from, in words: `bases/eagle3.yaml:4:3`, `--set`, or `schema default`."""
        node = self.find(parts(path))
        if node is None:
            return "schema default"
        if node.text.name.startswith("--set "):
            return "--set"
        return f"{node.text.name}:{node.key_line or node.line}:{node.key_column or node.column}"
