"""What all algorithms that draft blocks have in their section, DFlash and those with more on its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions, Shape
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class SlidingWindow(Shape, frozen=True):
    """Layers whose queries see the last `size` positions alone, and of a block what was before them if `causal`."""

    size: int
    layers: tuple[int, ...] | Literal["all"]
    causal: bool


class BlockOptions(DraftOptions, frozen=True):
    """The layers, the blocks, and what they are compared with; over the verifier's whole vocabulary."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type", "algorithm.layers", "algorithm.aux_layers")
    fewest_layers: ClassVar[int] = 8

    layers: int
    block_size: int
    anchors: int
    aux_layers: tuple[int, ...] | Literal["auto"]
    mask_token_id: int | None
    sliding_window: SlidingWindow | None
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]

    @property
    def speculative_tokens(self) -> int:
        """All of a block but the anchor, which is known."""
        return self.block_size - 1

    @property
    def chains_per_document(self) -> int:
        """Blocks are drawn anew in every epoch."""
        return self.anchors

    @property
    def most_speculative_tokens(self) -> int:
        """A block is no longer than those that were trained."""
        return self.speculative_tokens

    @property
    def is_renormalized(self) -> bool:
        """Whether the verifier's probabilities are scaled to sum to one over the draft's vocabulary."""
        return True

    @property
    def drops_unknown(self) -> bool:
        """Whether positions whose likeliest token the draft does not have are left out of the loss."""
        return False

    @property
    def windowed_layers(self) -> tuple[int, ...]:
        """The layers that have the window."""
        if self.sliding_window is None:
            return ()
        asked = self.sliding_window.layers
        return tuple(range(self.layers)) if asked == "all" else tuple(sorted(asked))

    def findings(self) -> Iterator[Finding]:
        """A mix of losses that does not fit the teacher, and a window of layers that are not there."""
        renormalized = self.is_renormalized and getattr(self, "draft_vocab_size", None) is not None
        yield from loss_findings(self.loss, renormalized=renormalized)
        if self.windowed_layers and self.windowed_layers[-1] >= self.layers:
            what = f"`algorithm.sliding_window.layers` has {self.windowed_layers[-1]}, and the draft has {self.layers}"
            hint = f"layers are counted from 0, so at most {self.layers - 1}; all: every one"
            yield Finding(("algorithm", "sliding_window", "layers"), what, hint)


class ReducedBlockOptions(BlockOptions, frozen=True):
    """The same over a vocabulary that may be reduced."""

    draft_vocab_size: int | None
    teacher: Literal["renormalized", "unrenormalized"]
    out_of_vocabulary: Literal["keep", "drop"]

    @property
    def is_renormalized(self) -> bool:
        """As the recipe says."""
        return self.teacher == "renormalized"

    @property
    def drops_unknown(self) -> bool:
        """As the recipe says."""
        return self.out_of_vocabulary == "drop"
