"""What a step sees of a recipe: the paths it declares and nothing else, so that its key covers all it can depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speculators.recipe.semantic import check_declared
from speculators.recipe.shapes.recipe import Recipe


class RecipeView:
    """A recipe, or a section of it, limited to declared paths; read like the recipe itself.

    Raises AttributeError, naming the path and what is declared, for everything else.
    """

    __slots__ = ("_path", "_reads", "_value")

    def __init__(self, value: Any, reads: tuple[str, ...], path: str = "") -> None:
        self._value, self._reads, self._path = value, reads, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python itself looks for, as copying does
            raise AttributeError(name)
        path = f"{self._path}.{name}" if self._path else name
        if path in self._reads:
            return getattr(self._value, name)
        if any(read.startswith(f"{path}.") for read in self._reads):
            below = getattr(self._value, name)
            # A section that is null hides nothing.
            return None if below is None else RecipeView(below, self._reads, path)
        raise AttributeError(f"`{path}` is not among the recipe paths that this step reads: {', '.join(self._reads)}")

    def __repr__(self) -> str:
        return f"RecipeView({', '.join(self._reads)})"


def view(recipe: Recipe, reads: Sequence[str]) -> RecipeView:
    """The recipe limited to `reads` and what is below them; raises ValueError for a path that no recipe has."""
    check_declared(reads)
    return RecipeView(recipe, tuple(reads))
