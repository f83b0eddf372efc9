"""Drafting with P-EAGLE: the first token from the pass that reads, all others from one pass over mask tokens.

Position t of the cache holds what EAGLE-3's does. The masks' keys and values are forgotten at the end of the round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speculators.algorithms.chain_proposal import Choose
from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.algorithms.peagle.network import PEagleNetwork
from speculators.layers.slot_cache import SlotCache


class PEagleProposal(Eagle3Proposal):
    """A network for inference; `decoding/models.py` says what its methods promise."""

    def __init__(self, network: PEagleNetwork, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, compute_dtype)
        self._mask_id = network.config.mask_token_id
        with torch.no_grad():
            self._mask_state = self._fuse(network.mask_hidden)  # [1, 1, h]

    @torch.no_grad()
    def propose(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
    ) -> torch.Tensor:
        """Read the first `counts[b]` of each row's new positions, then draft `k` tokens: verifier ids int64 [B, k]."""
        outs = [self._newest(cache, rows, next_ids, aux, counts)]
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        cache.crop(rows, kept)
        if k > 1:
            place = cache.place(rows, k - 1)
            masks = torch.full((len(counts), k - 1), self._mask_id)
            state = self._mask_state.expand(len(counts), k - 1, -1)
            outs.append(self._pass(cache, place, masks, state, "all"))
            # Nothing is cropped: the cache was never told of the masks' positions.
        logits = self._logits(torch.cat(outs, 1))
        chosen = [logits[:, j].argmax(-1) if choose is None else choose(logits[:, j]) for j in range(k)]
        ids = torch.stack(chosen, 1)
        return ids if self.target_ids is None else self.target_ids[ids]


Proposal = PEagleProposal
