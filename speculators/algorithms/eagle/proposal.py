"""Drafting with EAGLE-1: a chain of tokens (`algorithms/chain_proposal.py`), each from a foretold feature.

The features are the verifier's last hidden states after its final norm, which the verifier's pass gives before it.
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.algorithms.chain_proposal import ChainProposal
from speculators.algorithms.eagle.network import EagleNetwork
from speculators.layers.packed_linear import merge_linears


class EagleProposal(ChainProposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: EagleNetwork, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, [network.layer], compute_dtype)
        self._network = network
        with torch.no_grad():
            self._fc = merge_linears([network.fc], compute_dtype)
            vocabulary, hidden = network.verifier_head.shape
            head = nn.Linear(hidden, vocabulary, bias=False, device="meta")
            head.weight = nn.Parameter(network.verifier_head, requires_grad=False)
            self._head = merge_linears([head], compute_dtype)

    def _fuse(self, aux: torch.Tensor) -> torch.Tensor:
        return self._network.features(aux)

    def _enter(self, number: int, embeddings: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self._fc(torch.cat([embeddings, state], -1)).to(state.dtype)  # the stream is never rounded
        return fused, fused

    def _read_out(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._head(out), out


Proposal = EagleProposal
