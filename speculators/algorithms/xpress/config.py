"""The shape of an XPress draft: DFlash's, and its refiner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.dflash.config import DFlashConfig, verifier_layers
from speculators.algorithms.dflash.config import trained_parameters as backbone_parameters
from speculators.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

    from speculators.recipe.shapes.xpress import XPress

__all__ = ["Config", "XPressConfig", "trained_parameters", "verifier_layers"]


@dataclass(frozen=True, kw_only=True)
class XPressConfig(DFlashConfig):
    """Everything that decides the draft's parameters and its forward pass."""

    ALGORITHM: ClassVar[str] = "xpress"
    ARCHITECTURE: ClassVar[str] = "XPressDraftModel"
    OWN_KEYS: ClassVar[tuple[str, ...]] = ("xpress_rank", "xpress_mlp_ratio", "num_jacobi_passes")

    xpress_rank: int
    xpress_mlp_ratio: int
    num_jacobi_passes: int

    @classmethod
    def own_fields(cls, options: XPress) -> dict[str, Any]:
        """The refiner."""
        return {
            "xpress_rank": options.refiner.rank,
            "xpress_mlp_ratio": options.refiner.mlp_ratio,
            "num_jacobi_passes": options.refiner.passes,
        }

    @classmethod
    def from_config_json(cls, config: Mapping[str, Any], verifier_layers: Callable[[], int] | None = None) -> Self:
        """The shape of a draft from its config.json."""
        if config.get("sample_from_anchor"):
            raise UsageError("an XPress draft whose anchor predicts (`sample_from_anchor`) is not supported")
        return super().from_config_json(config, verifier_layers)


Config = XPressConfig


def trained_parameters(options: XPress, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    vocabulary, rank = facts["vocab_size"], options.refiner.rank
    tables = rank * (vocabulary + (options.draft_vocab_size or vocabulary))
    inside = rank * (2 * facts["hidden_size"] + (3 + 3 * options.refiner.mlp_ratio) * rank + options.block_size**2)
    return backbone_parameters(options, facts) + tables + inside
