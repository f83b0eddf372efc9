"""The whole recipe (`schemas/recipe.schema.json`)."""

from __future__ import annotations

from speculators.recipe.shapes.common import Dtype, Shape
from speculators.recipe.shapes.data import Data
from speculators.recipe.shapes.eagle3 import Eagle3
from speculators.recipe.shapes.eval import Eval
from speculators.recipe.shapes.train import Train
from speculators.recipe.shapes.verifier import Verifier

Algorithm = Eagle3


class Convert(Shape, frozen=True):
    """The checkpoint that is written."""

    dtype: Dtype


class Recipe(Shape, frozen=True):
    """One recipe, composed, filled with defaults and validated."""

    recipe: int
    name: str
    description: str | None
    seed: int
    verifier: Verifier
    algorithm: Algorithm
    data: Data
    train: Train
    convert: Convert
    eval: Eval
