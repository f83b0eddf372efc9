"""DFlash-2 (`schemas/algorithms/dflash2.schema.json`)."""

from __future__ import annotations

from speculators.recipe.shapes.blocks import BlockOptions
from speculators.recipe.shapes.common import Shape


class Convolution(Shape, frozen=True):
    """The convolution around every sublayer: tokens it reaches back over, and channels that share a kernel."""

    taps: int
    group_size: int


class Selector(Shape, frozen=True):
    """The head that chooses among each token's `top_k` likeliest by the token before; its weight in the loss."""

    rank: int
    top_k: int
    weight: float


class DFlash2(BlockOptions, frozen=True, tag="dflash2", tag_field="type"):
    """A DFlash-2 draft: its shape and its objective; always over the verifier's whole vocabulary."""

    gamma: float
    convolution: Convolution
    selector: Selector

    @property
    def train_version(self) -> int:
        """Since 2 Muon leaves the selector's tables to AdamW."""
        return 2
