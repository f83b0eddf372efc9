"""Drafting with DSpark: a block at once, as DFlash's, and its tokens chosen one after another by the Markov head.

The confidence head may end a proposal early. What it knows of a slot is the block's state and the token before, never
the slot's own token: whether a token is proposed does not depend on what was drawn for it, so that drawn texts stay
the verifier's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speculators.algorithms.dflash.proposal import Choose, DFlashProposal
from speculators.algorithms.dspark.network import DSparkNetwork
from speculators.layers.packed_linear import merge_linears
from speculators.layers.slot_cache import SlotCache


class DSparkProposal(DFlashProposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: DSparkNetwork, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, compute_dtype)
        self._draft = network
        self._bias = merge_linears([network.markov_head.markov_w2], compute_dtype)

    @property
    def foretells_acceptance(self) -> bool:
        """Whether the draft has a confidence head."""
        return self._draft.confidence_head is not None

    @torch.no_grad()
    def propose_confident(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
        least: float,
    ) -> tuple[torch.Tensor, list[int]]:
        """As `propose`, and how many tokens of each row have a product of confidences of at least `least`."""
        hidden, newest = self._predicting(cache, rows, next_ids, aux, lengths, counts, k)
        ids = self._choose(hidden, newest, choose)
        before = torch.cat([newest.to(ids.device)[:, None], ids[:, :-1]], 1)
        stands = self._draft.confidence(hidden, self._draft.markov(before)).float().sigmoid().cumprod(1)
        return ids, (stands >= least).sum(1).tolist()

    def _choose(self, hidden: torch.Tensor, newest: torch.Tensor, choose: Choose | None) -> torch.Tensor:
        base, before, memory = self._head(hidden), newest.to(hidden.device), None
        chain: list[torch.Tensor] = []
        for slot in range(base.shape[1]):
            y, memory = self._draft.markov_head.read(self._draft.markov(before), hidden[:, slot], memory)
            logits = base[:, slot] + self._bias(y)
            ids = logits.argmax(-1) if choose is None else choose(logits)
            before = ids if self.target_ids is None else self.target_ids[ids]
            chain.append(before)
        return torch.stack(chain, 1)


Proposal = DSparkProposal
