"""XPress (`schemas/algorithms/xpress.schema.json`)."""

from __future__ import annotations

from speculators.recipe.shapes.blocks import ReducedBlockOptions
from speculators.recipe.shapes.common import Shape


class Refiner(Shape, frozen=True):
    """The head that corrects a block: its rank, the width of its MLP in ranks, and its passes in drafting."""

    rank: int
    mlp_ratio: int
    passes: int


class FreeRunning(Shape, frozen=True):
    """Rounds in training in which the refiner reads what the draft chose, and their weight in the loss."""

    rounds: int
    weight: float


class XPress(ReducedBlockOptions, frozen=True, tag="xpress", tag_field="type"):
    """An XPress draft: its shape and its objective."""

    gamma: float
    refiner: Refiner
    free_running: FreeRunning
    base_weight: float

    @property
    def train_version(self) -> int:
        """Since 2 Muon leaves the table and output layer to AdamW, and images hide no token before an anchor."""
        return 2
