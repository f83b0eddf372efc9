"""A draft of heads: the state after the verifier's final norm goes in, and head j predicts the token j + 2 ahead.

At position t the verifier has given h_t and, with it, the token t+1; head 0 predicts t+2, head 1 t+3. What heads see
of the tokens between is what makes one kind of draft another. The final norm (and the embedding, where a draft reads
it) is the verifier's own: it is taken from there, is not trained, and stands in no checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.base import DraftNetwork
from speculators.verifiers.weights import VerifierWeights


class HeadsNetwork(DraftNetwork):
    """Base of such drafts. `d2t` int64 [Vd] (offsets) and `t2d` bool [V] are there when the vocabulary is reduced."""

    shares_weights: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    """Whether the state of a head depends on the tokens after the verifier's state."""
    d2t: torch.Tensor
    t2d: torch.Tensor
    final_norm: torch.Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self._eps = 1e-6
        self.register_buffer("final_norm", torch.ones(config.hidden_size), persistent=False)
        if config.draft_vocab_size != config.vocab_size:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    def attach(self, weights: VerifierWeights) -> None:
        """Take the verifier's final norm."""
        self.final_norm = weights.norm.to(self.final_norm)
        self._eps = weights.eps

    @property
    def target_ids(self) -> torch.Tensor | None:
        """The verifier's id of every draft id, int64 [Vd]; None when the two vocabularies are the same."""
        if self.config.draft_vocab_size == self.config.vocab_size:
            return None
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    @property
    @abstractmethod
    def heads(self) -> list[nn.Module]:
        """The layer that gives each step's logits, or a single one for all."""

    def begin(self, last: torch.Tensor) -> torch.Tensor:
        """The state [n, h] before the first head, from the verifier's streams before its final norm, `last` [n, h]."""
        wide = last.to(torch.promote_types(last.dtype, self.final_norm.dtype))
        return functional.rms_norm(wide, (wide.shape[-1],), self.final_norm.to(wide.dtype), self._eps)

    @abstractmethod
    def follow(self, step: int, state: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        """The state of head `step` [n, ...], from that of the one before, and the newest token int64 [n] there."""

    @abstractmethod
    def hidden(self, step: int, state: torch.Tensor) -> torch.Tensor:
        """What the head of a step reads, [n, ...], from its state."""

    def logits(self, step: int, state: torch.Tensor) -> torch.Tensor:
        """Logits [n, Vd] over the draft's vocabulary."""
        heads = self.heads
        result: torch.Tensor = heads[min(step, len(heads) - 1)](self.hidden(step, state))
        return result
