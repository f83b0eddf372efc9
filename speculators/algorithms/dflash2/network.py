"""DFlash-2's network: DFlash's layers with convolutions around every sublayer, and a selector over candidates.

A slot's candidates are the likeliest tokens by its logits z. Candidate c scores `z_c + <P[x] * W h, S[c]>`, where x is
the token before and h the slot's state: the newest token before the first slot, the chosen one before every other.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from speculators.algorithms.dflash.network import INITIAL_STD, DFlashNetwork, Place
from speculators.algorithms.dflash2.config import DFlash2Config
from speculators.data.vocabulary import DraftVocabulary
from speculators.layers.grouped_convolution import GroupedConvolution
from speculators.verifiers.weights import VerifierWeights


class CandidateSelector(nn.Module):
    """How well a candidate fits after a token, in a state: two tables over the vocabulary, and a projection."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(vocab_size, rank))
        self.hidden_projection = nn.Linear(hidden_size, rank, bias=False)

    def forward(self, hidden: torch.Tensor, before: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Scores [n, c] of `candidates` int64 [n, c] after tokens `before` int64 [n] in states `hidden` [n, h]."""
        read = self.predecessor_codebook[before] * self.hidden_projection(hidden).to(hidden.dtype)
        result: torch.Tensor = (self.successor_codebook[candidates] * read[:, None]).sum(-1)
        return result


class DFlash2Network(DFlashNetwork):
    """The draft; parameters have the checkpoint format's names."""

    config: DFlash2Config
    added: ClassVar[tuple[str, ...]] = ("attention_conv", "mlp_conv", "candidate_selector")
    tables_and_heads: ClassVar[tuple[str, ...]] = (
        *DFlashNetwork.tables_and_heads,
        "predecessor_codebook",
        "successor_codebook",
    )

    def __init__(self, config: DFlash2Config) -> None:
        super().__init__(config)
        for layer in self.layers:
            for name in ("attention_conv", "mlp_conv"):
                convolution = GroupedConvolution(config.hidden_size, config.conv_kernel_size, config.conv_group_size)
                layer.add_module(name, convolution)
        self.candidate_selector = CandidateSelector(config.vocab_size, config.hidden_size, config.selector_rank)

    def mix_in(self, layer: int, place: Place, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The block convolved, and the kernels for what comes out."""
        return self._convolution(layer, place).before(x)

    def mix_out(self, layer: int, place: Place, y: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """What comes out, convolved."""
        assert kept is not None  # noqa: S101  `mix_in` gave it
        return self._convolution(layer, place).after(y, kept)

    def _convolution(self, layer: int, place: Place) -> GroupedConvolution:
        found = getattr(self.layers[layer], place)
        assert isinstance(found, GroupedConvolution)  # noqa: S101  what the constructor put there
        return found

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """As DFlash's; at first convolutions are the identity, and the selector has no preference."""
        super().start_from(weights, vocabulary, generator)
        for number in range(self.config.layers):
            self._convolution(number, "attention_conv").identity()
            self._convolution(number, "mlp_conv").identity()
        selector = self.candidate_selector
        selector.predecessor_codebook.normal_(0.0, 1.0, generator=generator)
        selector.successor_codebook.zero_()
        selector.hidden_projection.weight.normal_(0.0, INITIAL_STD, generator=generator)


Network = DFlash2Network
