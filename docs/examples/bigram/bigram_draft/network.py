"""The table: the logits after token x are `after @ before[x]`."""

from __future__ import annotations

import torch
from torch import nn

from bigram_draft.config import Config
from speculators.algorithms.base import DraftNetwork
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights


class Network(DraftNetwork):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.before = nn.Embedding(config.vocab_size, config.rank)
        self.after = nn.Linear(config.rank, config.vocab_size, bias=False)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """What the head reads after tokens `ids` [...]: [..., rank]."""
        result: torch.Tensor = self.before(ids)
        return result

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """Small numbers; nothing of the verifier's."""
        for parameter in self.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
