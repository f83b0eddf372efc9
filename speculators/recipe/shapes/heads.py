"""What all drafts of heads have in their section: Medusa, Hydra and the MLP speculator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class HeadOptions(DraftOptions, frozen=True):
    """The heads and what they are compared with, over the verifier's whole vocabulary; they read its last state."""

    states_read: ClassVar[tuple[str, ...]] = ("algorithm.type",)
    drafts_trees: ClassVar[bool] = True

    heads: int
    decay: float
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]

    @property
    def speculative_tokens(self) -> int:
        """One a head."""
        return self.heads

    @property
    def most_speculative_tokens(self) -> int:
        """One a head."""
        return self.heads

    @property
    def is_renormalized(self) -> bool:
        """Whether the verifier's probabilities are scaled to sum to one over the draft's vocabulary."""
        return True

    @property
    def drops_unknown(self) -> bool:
        """Whether positions whose likeliest token the draft does not have are left out of the loss."""
        return False

    @property
    def trains_heads(self) -> bool:
        """Whether output layers are trained."""
        return True

    def findings(self) -> Iterator[Finding]:
        """A mix of losses of nothing."""
        yield from loss_findings(self.loss, renormalized=False)


class ResidualHeadOptions(HeadOptions, frozen=True):
    """Residual blocks under output layers that may be one for all, over a vocabulary that may be reduced."""

    layers: int
    shared_head: bool
    draft_vocab_size: int | None
    teacher: Literal["renormalized", "unrenormalized"]
    out_of_vocabulary: Literal["keep", "drop"]
    train_head: bool

    @property
    def is_renormalized(self) -> bool:
        """As the recipe says."""
        return self.teacher == "renormalized"

    @property
    def drops_unknown(self) -> bool:
        """As the recipe says."""
        return self.out_of_vocabulary == "drop"

    @property
    def trains_heads(self) -> bool:
        """As the recipe says."""
        return self.train_head

    def findings(self) -> Iterator[Finding]:
        """A mix of losses that does not fit the teacher."""
        yield from loss_findings(self.loss, renormalized=self.is_renormalized and self.draft_vocab_size is not None)
