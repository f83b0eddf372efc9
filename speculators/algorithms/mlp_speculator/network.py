"""The MLP speculator's network: in every step the state is projected, and the newest token's embedding added.

`s_{i+1} = gelu(norm_i(proj_i(s_i) + (w_token / w_state) * emb_i(x)))`, and head i reads s_{i+1}. The weights of the sum
let an embedding in with just the power that the state loses, so that the verifier's half is left in the end.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.heads.network import HeadsNetwork
from speculators.algorithms.mlp_speculator.config import MLPSpeculatorConfig
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights

NORM_EPS = 1e-6
HALF_POWER = math.sqrt(0.5)


class ShiftedNorm(nn.Module):
    """Division by the root mean square, then a factor and a shift for each channel; no mean is taken off."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = functional.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)
        return normed + self.bias


class MLPSpeculatorNetwork(HeadsNetwork):
    """The draft. With tied weights there is one of every module, and two projections: the first, and all others."""

    config: MLPSpeculatorConfig

    def __init__(self, config: MLPSpeculatorConfig) -> None:
        super().__init__(config)
        inner, words = config.inner_size, config.vocab_size
        steps = 1 if config.tie_weights else config.heads
        widths = [config.hidden_size] + [inner] * ((2 if config.tie_weights else config.heads) - 1)
        self.embed_tokens = nn.ModuleList(nn.Embedding(words, inner) for _ in range(steps))
        self.proj = nn.ModuleList(nn.Linear(width, inner, bias=False) for width in widths)
        self.norms = nn.ModuleList(ShiftedNorm(inner) for _ in range(steps))
        self.lm_heads = nn.ModuleList(nn.Linear(inner, words, bias=False) for _ in range(steps))

    @property
    def heads(self) -> list[nn.Module]:
        """The output layers."""
        return list(self.lm_heads)

    def begin(self, last: torch.Tensor) -> torch.Tensor:
        """The verifier's state [n, h] after its final norm, scaled if the draft wants it so."""
        state = super().begin(last)
        if not self.config.scale_input:
            return state
        return functional.rms_norm(state, (state.shape[-1],), eps=NORM_EPS) * HALF_POWER

    def follow(self, step: int, state: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """The state [n, inner] of head `step`."""
        one = min(step, len(self.norms) - 1)
        table = self.embed_tokens[one].weight
        assert isinstance(table, torch.Tensor)  # noqa: S101  an embedding's weight
        projected = self.proj[min(step, len(self.proj) - 1)](state)
        token = functional.embedding(newest, table)
        mixed = projected.to(token.dtype) + token * (self.config.token_weight / self.config.state_weight)
        return functional.gelu(self.norms[one](mixed))

    def hidden(self, step: int, state: torch.Tensor) -> torch.Tensor:
        """The state itself."""
        return state

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """All matrices normal with variance 1/inner; norms as they were made."""
        self.attach(weights)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, self.config.inner_size**-0.5, generator=generator)


Network = MLPSpeculatorNetwork
