"""The shape of a DSpark draft: DFlash's, and its two heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.dflash.config import DFlashConfig, verifier_layers
from speculators.algorithms.dflash.config import trained_parameters as backbone_parameters
from speculators.algorithms.dspark.layout import ABSENT
from speculators.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.dspark import DSpark

__all__ = ["Config", "DSparkConfig", "trained_parameters", "verifier_layers"]

MARKOV_HEADS = ("vanilla", "gated", "rnn")
"""Types of the Markov head (`markov.py` has their formulas)."""


@dataclass(frozen=True, kw_only=True)
class DSparkConfig(DFlashConfig):
    """Everything that decides the draft's parameters and its forward pass."""

    ALGORITHM: ClassVar[str] = "dspark"
    ARCHITECTURE: ClassVar[str] = "DSparkDraftModel"
    OWN_KEYS: ClassVar[tuple[str, ...]] = ("markov_rank", *ABSENT)

    markov_rank: int
    markov_head_type: str
    enable_confidence_head: bool
    confidence_head_with_markov: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.markov_head_type not in MARKOV_HEADS:
            known = ", ".join(MARKOV_HEADS)
            raise UsageError(f"a Markov head of the type {self.markov_head_type!r} is not known; allowed: {known}")

    @classmethod
    def own_fields(cls, options: DSpark) -> dict[str, Any]:
        """The heads, and an anchor that predicts."""
        return {
            "sample_from_anchor": True,
            "markov_rank": options.markov_rank,
            "markov_head_type": options.markov_head_type,
            "enable_confidence_head": options.confidence.weight > 0,
            "confidence_head_with_markov": options.confidence.with_markov,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json; absent keys mean what vLLM takes them to."""
        return super().from_config_json({**ABSENT, **config}, verifier_layers)


Config = DSparkConfig


def trained_parameters(options: DSpark, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    vocabulary = facts["vocab_size"]
    rank, hidden = options.markov_rank, facts["hidden_size"]
    heads = rank * (vocabulary + (options.draft_vocab_size or vocabulary))
    inner = {"vanilla": 0, "gated": hidden + rank, "rnn": 3 * (hidden + 2 * rank)}[options.markov_head_type]
    return backbone_parameters(options, facts) + heads + rank * inner
