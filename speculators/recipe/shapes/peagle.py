"""P-EAGLE (`schemas/algorithms/peagle.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions, Shape
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class DepthSampling(Shape, frozen=True):
    """The share of positions trained at depth d: `ratio ** d`, and never below `least`."""

    ratio: float
    least: float


class PEagleNormalization(Shape, frozen=True):
    """Which norms the draft has; those that vLLM serves."""

    before_residual: bool
    before_fc: bool


class PEagle(DraftOptions, frozen=True, tag="peagle", tag_field="type"):
    """A P-EAGLE draft: its shape and its objective."""

    layers: int
    depths: int
    decay: float
    sampling: DepthSampling
    draft_vocab_size: int | None
    aux_layers: tuple[int, ...] | Literal["auto"]
    mask_token_id: int | None
    normalization: PEagleNormalization
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]
    teacher: Literal["renormalized", "unrenormalized"]
    out_of_vocabulary: Literal["keep", "drop"]
    feature_noise: float
    train_embeddings: bool
    train_head: bool

    @property
    def speculative_tokens(self) -> int:
        """As many as training has depths."""
        return self.depths

    def findings(self) -> Iterator[Finding]:
        """A mix of losses that does not fit the teacher."""
        is_renormalized = self.teacher == "renormalized" and self.draft_vocab_size is not None
        yield from loss_findings(self.loss, renormalized=is_renormalized)
