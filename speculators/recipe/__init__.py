"""Loading, composing and validating recipes, and what steps may read of them."""

from speculators.recipe.load import Loaded, load_recipe, recipe_of
from speculators.recipe.reads import operational_paths, semantic, view

__all__ = ["Loaded", "load_recipe", "operational_paths", "recipe_of", "semantic", "view"]
