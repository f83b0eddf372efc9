"""DFlash (`schemas/algorithms/dflash.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.blocks import ReducedBlockOptions
from speculators.recipe.shapes.common import Shape


class Exponential(Shape, frozen=True, tag="exponential", tag_field="type"):
    """Slot k of a block, from 1, weighs exp(-(k - 1) / gamma)."""

    gamma: float


class DPace(Shape, frozen=True, tag="dpace", tag_field="type"):
    """Slots weigh by how likely a round gets to them, and what follows from them; the draft itself says how likely."""

    alpha: float


class DFlash(ReducedBlockOptions, frozen=True, tag="dflash", tag_field="type"):
    """A DFlash draft: its shape and its objective."""

    weights: Exponential | DPace

    def findings(self) -> Iterator[Finding]:
        """What all block drafts may have wrong, and weights that do not fit the losses."""
        yield from super().findings()
        if isinstance(self.weights, DPace) and self.loss.named().keys() != {"ce"}:
            what = "`algorithm.weights` of the type dpace weigh a cross-entropy, and `algorithm.loss` is another"
            yield Finding(("algorithm", "weights"), what, "write loss: {ce: 1.0}, or weights: {type: exponential}")
