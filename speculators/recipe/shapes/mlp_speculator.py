"""The MLP speculator (`schemas/algorithms/mlp_speculator.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.heads import HeadOptions


class MLPSpeculator(HeadOptions, frozen=True, tag="mlp_speculator", tag_field="type"):
    """An MLP speculator: its shape and its objective."""

    inner_size: int | None
    tie_weights: bool
    scale_input: bool

    def findings(self) -> Iterator[Finding]:
        """What all heads may have wrong, and a single one that shares its weights with no other."""
        yield from super().findings()
        if self.tie_weights and self.heads == 1:
            what = "`algorithm.tie_weights` is true, and one head has no other to share with"
            yield Finding(("algorithm", "tie_weights"), what, "set it to false")
