"""The shape of a HASS draft: EAGLE-1's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from speculators.algorithms.eagle.config import EagleConfig, trained_parameters, verifier_layers

__all__ = ["Config", "HassConfig", "trained_parameters", "verifier_layers"]


@dataclass(frozen=True, kw_only=True)
class HassConfig(EagleConfig):
    """Everything that decides the draft's parameters and its forward pass."""

    ALGORITHM: ClassVar[str] = "hass"
    ARCHITECTURE: ClassVar[str] = "HassDraftModel"


Config = HassConfig
