"""EAGLE-3 and 3.1 (`schemas/algorithms/eagle3.schema.json`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from speculators.recipe.finding import Finding
from speculators.recipe.shapes.common import DraftOptions, Shape
from speculators.recipe.shapes.losses import LossWeights, loss_findings


class TrainingTimeTest(Shape, frozen=True):
    """How many draft steps are unrolled in training, and the weight `decay ** step` of each."""

    steps: int
    decay: float


class Normalization(Shape, frozen=True):
    """Which norms the draft has; see the algorithm's page for the formulas."""

    before_residual: bool
    before_fc: bool
    per_aux_layer: bool
    output: bool


class Eagle3(DraftOptions, frozen=True, tag="eagle3", tag_field="type"):
    """An EAGLE-3 draft: its shape and its objective."""

    drafts_trees: ClassVar[bool] = True

    layers: int
    draft_vocab_size: int | None
    aux_layers: tuple[int, ...] | Literal["auto"]
    training_time_test: TrainingTimeTest
    normalization: Normalization
    loss: LossWeights
    reduction: Literal["token_mean", "sequence_mean", "padded_mean"]
    teacher: Literal["renormalized", "unrenormalized"]
    out_of_vocabulary: Literal["keep", "drop"]
    feature_noise: float
    train_embeddings: bool
    train_head: bool

    @property
    def speculative_tokens(self) -> int:
        """As many as training unrolls."""
        return self.training_time_test.steps

    @property
    def train_version(self) -> int:
        """Since 2 each document has feature noise of its own, so that processes can divide a batch."""
        return 2 if self.feature_noise else 1

    def findings(self) -> Iterator[Finding]:
        """A mix of losses that does not fit the teacher, and two norms for the same states."""
        is_renormalized = self.teacher == "renormalized" and self.draft_vocab_size is not None
        yield from loss_findings(self.loss, renormalized=is_renormalized)
        if self.normalization.before_fc and self.normalization.per_aux_layer:
            what = "`before_fc` and `per_aux_layer` are two ways to norm the same states"
            yield Finding(("algorithm", "normalization"), what, "set one of them to false")
