"""The shape of a Hydra draft (`heads/config.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from speculators.algorithms.heads.config import BlockHeadsConfig

if TYPE_CHECKING:
    from speculators.recipe.shapes.hydra import Hydra


class HydraConfig(BlockHeadsConfig):
    """Head i reads the verifier's state and the embeddings of the i + 1 tokens after it."""

    kind: ClassVar[str] = "hydra"
    architecture: ClassVar[str] = "HydraDraftModel"


Config = HydraConfig


def verifier_layers(options: Hydra, layers: int) -> tuple[int, ...]:
    """Training reads none but the last state, which is always there."""
    return ()


def trained_parameters(options: Hydra, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    hidden, vocabulary = facts["hidden_size"], options.draft_vocab_size or facts["vocab_size"]
    joined = sum(2 * (2 + head) * hidden * hidden for head in range(options.heads))
    blocks = joined + options.heads * (options.layers - 1) * hidden * hidden
    heads = (1 if options.shared_head else options.heads) * vocabulary * hidden
    return blocks + (heads if options.train_head else 0)
