"""What makes paths a tree: whatever leads to a node is a node too."""

from __future__ import annotations

from collections.abc import Sequence


def unled(paths: Sequence[Sequence[int]]) -> list[int]:
    """The numbers of those `paths` that go on from a path which is not there."""
    known = {tuple(path) for path in paths}
    return [number for number, path in enumerate(paths) if len(path) > 1 and tuple(path[:-1]) not in known]
