"""Something that a schema cannot say is wrong, with the path of the value in the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from speculators.recipe.nodes import Path_


@dataclass(frozen=True)
class Finding:
    """Something wrong with the value at a path of the recipe."""

    path: Path_
    what: str
    hint: str = ""
