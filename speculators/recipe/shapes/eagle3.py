"""EAGLE-3 and 3.1 (`schemas/algorithms/eagle3.schema.json`)."""

from __future__ import annotations

from typing import Literal

from speculators.recipe.shapes.common import Shape


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


class LossWeights(Shape, frozen=True):
    """The weight of every named loss in the mix; zero leaves it out."""

    kl: float
    rkl: float
    jsd: float
    ce: float
    tv: float
    nla: float
    lk: float


class Eagle3(Shape, frozen=True, tag="eagle3", tag_field="type"):
    """An EAGLE-3 draft: its shape and its objective."""

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
