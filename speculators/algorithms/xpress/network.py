"""XPress's network: DFlash's layers, and a refiner that corrects the logits of a block by the tokens in it.

For slot k of a block, with the token before it, x_{k-1}, and the slots' states h:

    u_k = W_in [down_h h_k; down_g mean(h); E[x_{k-1}]]          rank r
    u   = u + mix(u)      every channel has a lower triangular matrix over the slots
    u_k = u_k + MLP(u_k)                                          SwiGLU
    logits of slot k = head h_k + W_out u_k

The anchor is slot 0, and before it is the token before the newest one. In drafting, all slots are corrected at once
from the tokens that the pass before chose (Jacobi); after p passes the first p tokens are those of going one by one.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.xpress.config import XPressConfig
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights


class Refiner(nn.Module):
    """The head's matrices, by the checkpoint format's names."""

    def __init__(self, config: XPressConfig) -> None:
        super().__init__()
        rank, hidden, inner = config.xpress_rank, config.hidden_size, config.xpress_rank * config.xpress_mlp_ratio
        self.token_embed = nn.Embedding(config.vocab_size, rank)
        self.down_h = nn.Linear(hidden, rank, bias=False)
        self.down_g = nn.Linear(hidden, rank, bias=False)
        self.in_proj = nn.Linear(3 * rank, rank, bias=False)
        self.mix_l = nn.Parameter(torch.zeros(rank, config.block_size, config.block_size))
        self.mlp_gate = nn.Linear(rank, inner, bias=False)
        self.mlp_up = nn.Linear(rank, inner, bias=False)
        self.mlp_down = nn.Linear(inner, rank, bias=False)
        self.readout = nn.Linear(rank, config.draft_vocab_size, bias=False)

    def summary(self, states: torch.Tensor) -> torch.Tensor:
        """What of the block's states [n, B, h] every pass reads: [n, B, 2r]."""
        whole = self.down_g(states.mean(1, keepdim=True)).expand(-1, states.shape[1], -1)
        return torch.cat([self.down_h(states), whole], -1)

    def forward(self, summary: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """u [n, B, r] from `summary` and the tokens before each slot, `before` int64 [n, B]."""
        known = self.token_embed(before).to(summary.dtype)
        u = self.in_proj(torch.cat([summary, known], -1)).to(known.dtype)
        u = u + torch.einsum("ckj,njc->nkc", self.mix_l.tril().to(u.dtype), u)
        inner = functional.silu(self.mlp_gate(u)) * self.mlp_up(u)
        result: torch.Tensor = u + self.mlp_down(inner).to(u.dtype)
        return result


class XPressNetwork(DFlashNetwork):
    """The draft; parameters have the checkpoint format's names."""

    config: XPressConfig
    added: ClassVar[tuple[str, ...]] = ("refiner_head",)
    tables_and_heads: ClassVar[tuple[str, ...]] = (*DFlashNetwork.tables_and_heads, "token_embed", "readout")

    def __init__(self, config: XPressConfig) -> None:
        super().__init__(config)
        self.refiner_head = Refiner(config)

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """As DFlash's; at first the slots are not mixed."""
        super().start_from(weights, vocabulary, generator)
        self.refiner_head.mix_l.zero_()


Network = XPressNetwork
