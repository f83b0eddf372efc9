"""Drafting with XPress: a block at once, as DFlash's, then a few passes of the refiner over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from speculators.algorithms.dflash.proposal import Choose, DFlashProposal
from speculators.algorithms.xpress.network import XPressNetwork
from speculators.algorithms.xpress.passes import free_running
from speculators.layers.packed_linear import merge_linears
from speculators.layers.slot_cache import SlotCache


class TokenCache(SlotCache):
    """Keys and values, and of every position the token after it: the refiner reads the one before the newest."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.after = torch.zeros(self.slots, self.capacity, dtype=torch.int64)

    def move(self, source: int, destination: int) -> None:
        """As the keys and values."""
        super().move(source, destination)
        self.after[destination] = self.after[source]


class XPressProposal(DFlashProposal):
    """A network for inference; `decoding/models.py` says what its methods promise.

    A block is always computed whole, as the refiner knows no other; it may lie beyond the cache's capacity, which is
    therefore larger. What is drawn is drawn from the last pass's distributions, which do not depend on what is drawn.
    """

    def __init__(self, network: XPressNetwork, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__(network, compute_dtype)
        self._draft = network
        self._bias = merge_linears([network.refiner_head.readout], compute_dtype)

    def new_cache(self, slots: int, capacity: int) -> TokenCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        weight, size = self._network.norm.weight, capacity + self.config.block_size
        self._network.tables(torch.arange(size, device=weight.device), size - 1)
        return TokenCache(
            len(self._layers), slots, self._groups, self.config.head_dim, size, weight.dtype, weight.device
        )

    @torch.no_grad()
    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions with features `aux` [B, m, F] and the tokens after them, `next_ids` [B, m]."""
        _remember(cache, rows, next_ids)
        super().read(cache, rows, next_ids, aux)

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
        after = _remember(cache, rows, next_ids)
        self._read(cache, rows, aux)
        kept = torch.tensor([length + count for length, count in zip(lengths, counts, strict=True)])
        cache.crop(rows, kept)
        newest = after[rows, (kept - 1).clamp(min=0)]
        before = torch.where(kept > 1, after[rows, (kept - 2).clamp(min=0)], newest)
        states = self._block(cache, rows, newest, self.config.block_size)
        newest, before = newest.to(states.device), before.to(states.device)
        base = self._head(states)

        def likeliest(states: torch.Tensor, u: torch.Tensor | None) -> torch.Tensor:
            ids = (base if u is None else base + self._bias(u)).argmax(-1)
            return ids if self.target_ids is None else self.target_ids[ids]

        passes = free_running(
            self._draft.refiner_head, states, newest, before, likeliest, self._draft.config.num_jacobi_passes
        )
        *_, u = passes
        logits = (base + self._bias(u))[:, 1 : k + 1]
        ids = [logits[:, j].argmax(-1) if choose is None else choose(logits[:, j]) for j in range(k)]
        chosen = torch.stack(ids, 1)
        return chosen if self.target_ids is None else self.target_ids[chosen]


Proposal = XPressProposal


def _remember(cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Keep the tokens after new positions; those after all positions, [slots, capacity]."""
    assert isinstance(cache, TokenCache)  # noqa: S101  what `new_cache` gave
    places = cache.lengths[rows][:, None] + torch.arange(next_ids.shape[1])
    cache.after[rows[:, None], places] = next_ids.cpu()
    return cache.after
