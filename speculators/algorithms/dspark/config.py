"""The shape of a DSpark draft: DFlash's, and its two heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.dflash.config import DFlashConfig, verifier_layers
from speculators.algorithms.dflash.config import trained_parameters as backbone_parameters
from speculators.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.dspark import DSpark

__all__ = ["Config", "DSparkConfig", "trained_parameters", "verifier_layers"]

_ABSENT = {"enable_confidence_head": False, "confidence_head_with_markov": False}
"""What vLLM takes an absent key to mean."""


@dataclass(frozen=True, kw_only=True)
class DSparkConfig(DFlashConfig):
    """Everything that decides the draft's parameters and its forward pass."""

    ALGORITHM: ClassVar[str] = "dspark"
    ARCHITECTURE: ClassVar[str] = "DSparkDraftModel"
    OWN_KEYS: ClassVar[tuple[str, ...]] = ("markov_rank", *_ABSENT)

    markov_rank: int
    enable_confidence_head: bool
    confidence_head_with_markov: bool

    @classmethod
    def own_fields(cls, options: DSpark) -> dict[str, Any]:
        """The heads, and an anchor that predicts."""
        return {
            "sample_from_anchor": True,
            "markov_rank": options.markov_rank,
            "enable_confidence_head": options.confidence.weight > 0,
            "confidence_head_with_markov": options.confidence.with_markov,
        }

    def to_config_json(self) -> dict[str, Any]:
        """The draft's part of config.json, with every key that any reader looks for."""
        return {**super().to_config_json(), "markov_head_type": "vanilla"}

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json; absent keys mean what vLLM takes them to."""
        if config.get("markov_head_type", "vanilla") != "vanilla":
            raise UsageError(f"a Markov head of the type {config['markov_head_type']!r} is not known; vanilla is")
        return super().from_config_json({**_ABSENT, **config}, verifier_layers)


Config = DSparkConfig


def trained_parameters(options: DSpark, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    vocabulary = facts["vocab_size"]
    heads = options.markov_rank * (vocabulary + (options.draft_vocab_size or vocabulary))
    return backbone_parameters(options, facts) + heads
