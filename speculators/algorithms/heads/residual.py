"""Heads that are a few residual blocks and an output layer, one for each head or one for all: Medusa's and Hydra's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from speculators.algorithms.heads.network import HeadsNetwork
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights


class ResidualHeads(HeadsNetwork):
    """Base of both; `blocks` are one module a head, from what the head reads to [n, h]."""

    def __init__(self, config: Any, blocks: Iterable[nn.Module]) -> None:
        super().__init__(config)
        hidden, words = config.hidden_size, config.draft_vocab_size
        self.blocks = nn.ModuleList(blocks)
        if config.shared_head:
            self.lm_head = nn.Linear(hidden, words, bias=False)
        else:
            self.lm_heads = nn.ModuleList(nn.Linear(hidden, words, bias=False) for _ in range(config.heads))

    @property
    def heads(self) -> list[nn.Module]:
        """The output layers."""
        return [self.lm_head] if self.config.shared_head else list(self.lm_heads)

    def hidden(self, step: int, state: torch.Tensor) -> torch.Tensor:
        """What the output layer reads, [n, h]."""
        result: torch.Tensor = self.blocks[step](state)
        return result

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Blocks that hand on the verifier's state, and its head (the draft's rows of it); nothing is random."""
        self.attach(weights)
        self.map_vocabulary(vocabulary)
        for parameter in self.blocks.parameters():
            parameter.zero_()
        self.pass_on()
        rows = self.target_ids
        for one in self.heads:
            assert isinstance(one, nn.Linear)  # noqa: S101  as it was made
            one.weight.copy_(weights.head if rows is None else weights.head[rows])

    @abstractmethod
    def pass_on(self) -> None:
        """Make blocks whose parameters are all zero give the verifier's state."""
