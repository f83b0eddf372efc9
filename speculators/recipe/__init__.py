"""Loading, composing and validating recipes (`load`), and what steps may read of them (`view`, `semantic`)."""

from speculators.recipe.load import Loaded, load_recipe

__all__ = ["Loaded", "load_recipe"]
