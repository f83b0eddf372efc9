"""The whole recipe (`schemas/recipe.schema.json`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Union, cast

from msgspec import UNSET

from speculators.recipe.outside import outside_algorithms
from speculators.recipe.shapes.common import Dtype, Shape
from speculators.recipe.shapes.data import Data
from speculators.recipe.shapes.dflash import DFlash
from speculators.recipe.shapes.dflash2 import DFlash2
from speculators.recipe.shapes.draft_model import DraftModel
from speculators.recipe.shapes.dspark import DSpark
from speculators.recipe.shapes.eagle import Eagle, Hass
from speculators.recipe.shapes.eagle3 import Eagle3
from speculators.recipe.shapes.eval import Eval
from speculators.recipe.shapes.hydra import Hydra
from speculators.recipe.shapes.medusa import Medusa
from speculators.recipe.shapes.mlp_speculator import MLPSpeculator
from speculators.recipe.shapes.mtp import Mtp
from speculators.recipe.shapes.peagle import PEagle
from speculators.recipe.shapes.train import Train
from speculators.recipe.shapes.verifier import Verifier
from speculators.recipe.shapes.xpress import XPress

OURS = (Eagle, Eagle3, Hass, PEagle, DFlash, DSpark, DFlash2, XPress, Medusa, Hydra, MLPSpeculator, Mtp, DraftModel)

if TYPE_CHECKING:
    Algorithm = (
        Eagle
        | Eagle3
        | Hass
        | PEagle
        | DFlash
        | DSpark
        | DFlash2
        | XPress
        | Medusa
        | Hydra
        | MLPSpeculator
        | Mtp
        | DraftModel
    )
else:  # and those of other packages that are installed
    _EVERY = (*OURS, *(one.options() for one in outside_algorithms().values()))
    Algorithm = Union[_EVERY]  # noqa: UP007  of a tuple that is made while running


class Convert(Shape, frozen=True):
    """The checkpoint that is written, and the foreign draft (`source`) that it is converted from, if there is one."""

    source: str | None
    format: Literal[
        "auto",
        "eagle3",
        "eagle3.1",
        "modelopt",
        "specforge",
        "eagle",
        "medusa",
        "hydra",
        "mlp_speculator",
        "draft_model",
        "peagle",
        "dflash",
        "dspark",
        "mtp",
        "speculators",
    ]
    aux_layers: tuple[int, ...] | Literal["auto"]
    dtype: Dtype | Literal["source"]


class Recipe(Shape, frozen=True, kw_only=True):
    """One recipe, composed, filled with defaults and validated.

    A recipe that `converts` has no `algorithm`, `data` and `train`: nothing may look at them, and they are in no key.
    """

    recipe: int
    name: str
    description: str | None
    seed: int
    verifier: Verifier
    algorithm: Algorithm = cast("Algorithm", UNSET)
    data: Data = cast("Data", UNSET)
    train: Train = cast("Train", UNSET)
    convert: Convert
    eval: Eval

    @property
    def converts(self) -> bool:
        """Whether the draft is converted from a foreign one, not trained."""
        return self.convert.source is not None
