"""Drafting with EAGLE-3: a chain of tokens (`algorithms/chain_proposal.py`), each from the last one's state.

The first state is `g_t`, fused from the verifier's streams at t; later ones are the network's own last outputs.
"""

from __future__ import annotations

import torch

from speculators.algorithms.chain_proposal import ChainProposal
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.layers.packed_linear import merge_linears


class Eagle3Proposal(ChainProposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: Eagle3Network, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, [network.layer(number) for number in range(network.config.layers)], compute_dtype)
        self._network = network
        self.target_ids = network.target_ids
        with torch.no_grad():
            self._fc = merge_linears([network.fc], compute_dtype)
            self._head = merge_linears([network.lm_head], compute_dtype)

    def _enter(self, number: int, embeddings: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._blocks[number].enter(embeddings, state)

    def _read_out(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normed = self._network.norm(out)
        return self._head(normed), normed if self.config.norm_output else out

    def _logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits [B, q, Vd] from the last layer's output [B, q, h]."""
        return self._read_out(out)[0]

    def _fuse(self, aux: torch.Tensor) -> torch.Tensor:
        """`Eagle3Network.fuse` with the packed matrix."""
        network = self._network
        aux = aux.to(network.embed_tokens.weight.dtype)
        if network.input_norm is not None:
            aux = network.input_norm(aux)
        if network.fc_norm is not None:
            parts = aux.chunk(len(network.fc_norm), -1)
            aux = torch.cat([norm(part) for norm, part in zip(network.fc_norm, parts, strict=True)], -1)
        fused: torch.Tensor = self._fc(aux)
        return fused.to(aux.dtype)  # the residual stream is never rounded


Proposal = Eagle3Proposal
