"""DSpark (`schemas/algorithms/dspark.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.blocks import ReducedBlockOptions
from speculators.recipe.shapes.common import Shape


class Confidence(Shape, frozen=True):
    """The head that foretells acceptance: its weight in the loss (0: none), and whether it sees the Markov head."""

    weight: float
    with_markov: bool


class DSpark(ReducedBlockOptions, frozen=True, tag="dspark", tag_field="type"):
    """A DSpark draft: its shape and its objective."""

    gamma: float
    markov_rank: int
    markov_head_type: Literal["vanilla", "gated", "rnn"]
    confidence: Confidence

    @property
    def speculative_tokens(self) -> int:
        """All of a block: its anchor predicts too."""
        return self.block_size

    @property
    def foretells_acceptance(self) -> bool:
        """With a confidence head."""
        return self.confidence.weight > 0

    @property
    def train_version(self) -> int:
        """Since 2 Muon leaves the Markov head's tables and the confidence head to AdamW."""
        return 2

    def findings(self) -> Iterator[Finding]:
        """What all block drafts may have wrong, and a confidence that has nothing to foretell."""
        yield from super().findings()
        if self.confidence.weight and "tv" not in self.loss.named():
            what = "`algorithm.confidence` foretells acceptance, which the loss `tv` measures, and that weighs nothing"
            hint = "give `algorithm.loss.tv` a weight, or write confidence: {weight: 0}"
            yield Finding(("algorithm", "confidence"), what, hint)
