"""The shape of a Hydra draft (`heads/config.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.heads.config import BlockHeadsConfig

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.hydra import Hydra


@dataclass(frozen=True, kw_only=True)
class HydraConfig(BlockHeadsConfig):
    """Head i reads the verifier's state and the embeddings of the i + 1 tokens after it.

    `head_bias`: output layers add a bias, as those of the authors' drafts do; a recipe's drafts have none.
    """

    kind: ClassVar[str] = "hydra"
    architecture: ClassVar[str] = "HydraDraftModel"

    head_bias: bool = False

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json."""
        return {**super().to_config_json(), "head_bias": self.head_bias}

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json; raises UsageError when a key is missing."""
        found = super().from_config_json(config, verifier_layers)
        return replace(found, head_bias=config.get("head_bias", False))


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
