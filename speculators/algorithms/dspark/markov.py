"""Markov heads: the bias that the tokens so far give to a slot's logits, `W2 y` with y of low rank.

With e = W1[x], x the token before the one that a slot predicts, and h the slot's state:

* vanilla: y = e.
* gated: y = sigmoid(G [h; e]) * e, so that the state says which channels of the token count.
* rnn: [g; c; o] = J [s; e; h] and y = tanh(o); s is a memory of the block's tokens, zero before its first slot and
  sigmoid(g) * s + (1 - sigmoid(g)) * tanh(c) after every one.

(Formulas, names and shapes of the parameters are those of the checkpoints that the authors' own trainer writes.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class MarkovHead(nn.Module):
    """The vanilla head, and what all have: the two factors of the bias."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)

    def read(
        self, known: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y [n, r] of slots with the tokens before `known` [n, r] and the states `hidden` [n, h]; and the next memory.

        `memory` is what the slot before gave, None at a block's first.
        """
        return known, None


class GatedMarkovHead(MarkovHead):
    """A gate on the token's channels, by the slot's state."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, draft_vocab_size, rank, hidden_size)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def read(
        self, known: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        gate = self.gate_proj(torch.cat([hidden, known], -1)).sigmoid()
        return gate.to(known.dtype) * known, None


class RecurrentMarkovHead(MarkovHead):
    """A memory of all the block's tokens so far."""

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int, hidden_size: int) -> None:
        super().__init__(vocab_size, draft_vocab_size, rank, hidden_size)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def read(
        self, known: torch.Tensor, hidden: torch.Tensor, memory: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        memory = torch.zeros_like(known) if memory is None else memory
        joint = self.joint_proj(torch.cat([memory, known, hidden], -1)).to(known.dtype)
        gate, candidate, out = joint.chunk(3, -1)
        kept = gate.sigmoid()
        return out.tanh(), kept * memory + (1 - kept) * candidate.tanh()


HEADS: Mapping[str, type[MarkovHead]] = {
    "vanilla": MarkovHead,
    "gated": GatedMarkovHead,
    "rnn": RecurrentMarkovHead,
}
"""By their names in a recipe and in config.json (`markov_head_type`)."""
