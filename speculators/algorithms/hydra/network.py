"""Hydra's network: head i reads `[h_t; e(x_{t+1}); ...; e(x_{t+1+i})]`, the verifier's state and embeddings in a row.

Its first block is `Rx + r + silu(Wx + b)` with a matrix R down to the verifier's width, further ones are Medusa's
`x + silu(Wx + b)`. W and b start as zero, the output layers as the verifier's. The authors start R at random; here it
starts by taking h_t as it is, so that every head first says what the verifier says next, as Medusa's do.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.heads.residual import ResidualHeads
from speculators.algorithms.hydra.config import HydraConfig
from speculators.verifiers.weights import VerifierWeights


class Blocks(nn.Module):
    """One head's residual blocks over `width` channels, `hidden_size` after the first."""

    def __init__(self, width: int, hidden_size: int, count: int) -> None:
        super().__init__()
        self.residual = nn.Linear(width, hidden_size)
        self.layers = nn.ModuleList(nn.Linear(hidden_size if i else width, hidden_size) for i in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.layers
        x = self.residual(x) + functional.silu(first(x))
        for layer in others:
            x = x + functional.silu(layer(x))
        return x


class HydraNetwork(ResidualHeads):
    """The draft. `embedding` [V, h] is the verifier's."""

    config: HydraConfig
    embedding: torch.Tensor

    def __init__(self, config: HydraConfig) -> None:
        hidden = config.hidden_size
        super().__init__(config, (Blocks((head + 2) * hidden, hidden, config.layers) for head in range(config.heads)))
        for one in self.heads if config.head_bias else ():
            assert isinstance(one, nn.Linear)  # noqa: S101  as it was made
            one.bias = nn.Parameter(torch.zeros(config.draft_vocab_size))
        self.register_buffer("embedding", None, persistent=False)

    def attach(self, weights: VerifierWeights) -> None:
        """Take the verifier's final norm and embedding."""
        super().attach(weights)
        self.embedding = weights.embedding.to(self.final_norm)

    def follow(self, step: int, state: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """What head `step` reads [n, (step + 2) * h]: the newest token's embedding is put beside the rest."""
        return torch.cat([state, functional.embedding(newest, self.embedding)], -1)

    def pass_on(self) -> None:
        """Each first block takes the state alone of all that it reads."""
        for block in self.blocks:
            assert isinstance(block, Blocks)  # noqa: S101  as it was made
            block.residual.weight.fill_diagonal_(1.0)


Network = HydraNetwork
