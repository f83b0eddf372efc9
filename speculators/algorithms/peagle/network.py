"""P-EAGLE's network: EAGLE-3's, with a state of its own that stands where the verifier has none yet.

Depth 0 of the chain rooted at t is EAGLE-3's first step. Depth d reads the mask token's embedding and the learned
`mask_hidden` in place of a token and of the verifier's streams, at position t + d; it sees the keys of depth 0 up to
t and those of its own chain up to depth d. So all depths are computed at once, and none waits for a drafted token.
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.algorithms.eagle3.network import INITIAL_STD, Eagle3Network
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights


class PEagleNetwork(Eagle3Network):
    """The draft. `mask_hidden` [1, 1, A*h] is in the place of the verifier's streams, before `fc`."""

    config: PEagleConfig

    def __init__(self, config: PEagleConfig) -> None:
        super().__init__(config)
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, config.aux_width))

    def masked(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The embedding [h] and the state [h] of every depth from 1 on."""
        mask = torch.tensor(self.config.mask_token_id, device=self.mask_hidden.device)
        return self.embed(mask), self.fuse(self.mask_hidden[0, 0])

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """As EAGLE-3's; the mask's state starts as small as a matrix does."""
        super().start_from(weights, vocabulary, generator)
        self.mask_hidden.normal_(0.0, INITIAL_STD, generator=generator)


Network = PEagleNetwork
