"""HASS's network: EAGLE-1's."""

from __future__ import annotations

from typing import ClassVar

from speculators.algorithms.eagle.config import EagleConfig
from speculators.algorithms.eagle.network import EagleNetwork
from speculators.algorithms.hass.config import HassConfig


class HassNetwork(EagleNetwork):
    """The draft."""

    config_type: ClassVar[type[EagleConfig]] = HassConfig


Network = HassNetwork
