"""The shape of a Medusa draft (`heads/config.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from speculators.algorithms.heads.config import BlockHeadsConfig

if TYPE_CHECKING:
    from speculators.recipe.shapes.medusa import Medusa


class MedusaConfig(BlockHeadsConfig):
    """Every head reads the verifier's state alone."""

    kind: ClassVar[str] = "medusa"
    architecture: ClassVar[str] = "MedusaDraftModel"


Config = MedusaConfig


def verifier_layers(options: Medusa, layers: int) -> tuple[int, ...]:
    """Training reads none but the last state, which is always there."""
    return ()


def trained_parameters(options: Medusa, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    hidden, vocabulary = facts["hidden_size"], options.draft_vocab_size or facts["vocab_size"]
    blocks = options.heads * options.layers * hidden * (hidden + 1)
    heads = (1 if options.shared_head else options.heads) * vocabulary * hidden
    return blocks + (heads if options.train_head else 0)
