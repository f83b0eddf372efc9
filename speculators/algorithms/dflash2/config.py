"""The shape of a DFlash-2 draft: DFlash's, its convolutions and its selector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from speculators.algorithms.dflash.config import DFlashConfig, verifier_layers
from speculators.algorithms.dflash.config import trained_parameters as backbone_parameters
from speculators.errors import UsageError

if TYPE_CHECKING:
    from speculators.recipe.shapes.dflash2 import DFlash2

__all__ = ["Config", "DFlash2Config", "trained_parameters", "verifier_layers"]


@dataclass(frozen=True, kw_only=True)
class DFlash2Config(DFlashConfig):
    """Everything that decides the draft's parameters and its forward pass."""

    ALGORITHM: ClassVar[str] = "dflash2"
    ARCHITECTURE: ClassVar[str] = "DFlash2DraftModel"
    OWN_KEYS: ClassVar[tuple[str, ...]] = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")

    conv_kernel_size: int
    conv_group_size: int
    selector_rank: int
    selector_top_k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.conv_group_size:
            raise UsageError(
                f"`convolution.group_size` is {self.conv_group_size}, which does not divide the hidden size of "
                f"{self.hidden_size}"
            )
        if self.has_vocabulary_map:
            raise UsageError("a DFlash-2 draft has the verifier's whole vocabulary")

    @classmethod
    def own_fields(cls, options: DFlash2) -> dict[str, Any]:
        """The convolutions and the selector."""
        return {
            "conv_kernel_size": options.convolution.taps,
            "conv_group_size": options.convolution.group_size,
            "selector_rank": options.selector.rank,
            "selector_top_k": options.selector.top_k,
        }


Config = DFlash2Config


def trained_parameters(options: DFlash2, facts: Mapping[str, float]) -> float:
    """How many parameters are trained, from the verifier's sizes."""
    hidden = facts["hidden_size"]
    kernels = 2 * 2 * options.convolution.taps * hidden * (1 + hidden / options.convolution.group_size)
    selector = options.selector.rank * (2 * facts["vocab_size"] + hidden)
    return backbone_parameters(options, facts) + options.layers * kernels + selector
