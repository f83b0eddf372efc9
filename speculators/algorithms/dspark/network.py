"""DSpark's network: DFlash's layers, whose every slot predicts, and two small heads on what they give.

The Markov head (`markov.py`) adds to the logits of a slot a bias by the token before the one it predicts: the newest
token for the first slot, the one that the slot before chose for every other. So a block is computed at once, and only
its choices are made one after another. The confidence head foretells how likely a slot's token is accepted.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.dspark.markov import HEADS
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifiers.weights import VerifierWeights


class ConfidenceHead(nn.Module):
    """The logit of how likely a token is accepted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)


class DSparkNetwork(DFlashNetwork):
    """The draft; parameters have the checkpoint format's names."""

    config: DSparkConfig
    added: ClassVar[tuple[str, ...]] = ("markov_head", "confidence_head")
    tables_and_heads: ClassVar[tuple[str, ...]] = (
        *DFlashNetwork.tables_and_heads,
        "markov_w1",
        "markov_w2",
        "confidence_head",
    )

    def __init__(self, config: DSparkConfig) -> None:
        super().__init__(config)
        self.markov_head = HEADS[config.markov_head_type](
            config.vocab_size, config.draft_vocab_size, config.markov_rank, config.hidden_size
        )
        width = config.hidden_size + (config.markov_rank if config.confidence_head_with_markov else 0)
        self.confidence_head = ConfidenceHead(width) if config.enable_confidence_head else None

    def markov(self, ids: torch.Tensor) -> torch.Tensor:
        """What the heads know of tokens [...], verifier ids: [..., r]."""
        result: torch.Tensor = self.markov_head.markov_w1(ids)
        return result

    def confidence(self, hidden: torch.Tensor, markov: torch.Tensor) -> torch.Tensor:
        """Logits [...] of acceptance, from what the heads read: `hidden` [..., h] and `markov` [..., r]."""
        assert self.confidence_head is not None  # noqa: S101  asked only where there is one
        read = torch.cat([hidden, markov], -1) if self.config.confidence_head_with_markov else hidden
        result: torch.Tensor = self.confidence_head.proj(read)[..., 0]
        return result

    @torch.no_grad()
    def start_from(self, weights: VerifierWeights, vocabulary: DraftVocabulary, generator: torch.Generator) -> None:
        """As DFlash's; at first the Markov head adds nothing and the confidence head knows nothing."""
        super().start_from(weights, vocabulary, generator)
        for name, parameter in self.markov_head.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
        self.markov_head.markov_w2.weight.zero_()
        if self.confidence_head is not None:
            self.confidence_head.proj.weight.zero_()
            self.confidence_head.proj.bias.zero_()


Network = DSparkNetwork
