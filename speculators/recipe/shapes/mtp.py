"""MTP (`schemas/algorithms/mtp.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class Mtp(DraftOptions, frozen=True, tag="mtp", tag_field="type"):
    """The training of a verifier's own head, whose shape is not the recipe's to choose."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type",)

    steps: int
    decay: float
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]

    @property
    def speculative_tokens(self) -> int:
        """As often as training applies the head."""
        return self.steps

    def findings(self) -> Iterator[Finding]:
        """A mix of losses that is none."""
        yield from loss_findings(self.loss, renormalized=False)
