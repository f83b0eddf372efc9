"""A value as it was written: what it is, where it stands, and in which file.

Recipes are merged as trees of these, so that every value keeps its place to the very end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from speculators.errors import Place, Problem

Value: TypeAlias = "bool | int | float | str | dict[str, Node] | list[Node] | None"
Path_: TypeAlias = "tuple[str | int, ...]"
"""A path of the recipe: keys and list positions from the root."""

LONGEST_LINE = 160


@dataclass(frozen=True)
class Text:
    """One YAML text: `name` as messages print it, and `folder`, from where its relative paths go."""

    name: str
    text: str
    folder: Path

    def line(self, number: int) -> str:
        """Line `number`, from 1; empty beyond the end."""
        lines = self.text.split("\n")
        return lines[number - 1].rstrip("\r") if 0 < number <= len(lines) else ""

    def problem(self, line: int, column: int, what: str, hint: str = "") -> Problem:
        """A problem at a place of this text, with the line shown: printable, and clipped after the column."""
        shown = "".join(character if character.isprintable() else " " for character in self.line(line))
        if len(shown) > max(LONGEST_LINE, column + 20):
            shown = shown[: max(LONGEST_LINE, column + 20)] + " ..."
        return Problem(Place(self.name, line, column), what, hint, shown)


@dataclass(frozen=True)
class Node:
    """A value, its line and column (from 1), its key's if it has one, and whether it was written in quotes."""

    value: Value
    text: Text
    line: int
    column: int
    key_line: int = 0
    key_column: int = 0
    quoted: bool = False

    def problem(self, what: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem with this value, or with the key before it."""
        if at_key and self.key_line:
            return self.text.problem(self.key_line, self.key_column, what, hint)
        return self.text.problem(self.line, self.column, what, hint)


def plain(node: Node) -> Any:
    """The bare data: dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def walk(node: Node, path: Path_ = ()) -> Iterator[tuple[Path_, Node]]:
    """Every value with its path, parents first."""
    yield path, node
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from walk(child, (*path, key))
    elif isinstance(node.value, list):
        for number, child in enumerate(node.value):
            yield from walk(child, (*path, number))


def dotted(path: Path_) -> str:
    """The path as messages and `--set` write it: `data.sources[0].file`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
