"""Medusa's network: head i is a few residual blocks `x + silu(Wx + b)` on the verifier's state, and an output layer.

At the start every W and b is zero and every output layer is the verifier's: all heads first say what comes next.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.heads.residual import ResidualHeads
from speculators.algorithms.medusa.config import MedusaConfig


class Blocks(nn.Module):
    """One head's residual blocks."""

    def __init__(self, hidden_size: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return x


class MedusaNetwork(ResidualHeads):
    """The draft; the tokens between are seen by no head."""

    reads_tokens: ClassVar[bool] = False

    config: MedusaConfig

    def __init__(self, config: MedusaConfig) -> None:
        super().__init__(config, (Blocks(config.hidden_size, config.layers) for _ in range(config.heads)))

    def follow(self, step: int, state: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """The verifier's state [n, h], for every head the same."""
        return state

    def pass_on(self) -> None:
        """They do."""


Network = MedusaNetwork
