"""Drafting: a chain by the table. The cache only counts positions, as nothing has to be kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bigram_draft.network import Network


class Counts:
    def crop(self, rows: torch.Tensor, lengths: Any) -> None: ...

    def move(self, source: int, destination: int) -> None: ...


class Proposal:
    target_ids = None
    drafts_at_once = False

    def __init__(self, network: Network, compute_dtype: torch.dtype | None = None) -> None:
        self._network, self.aux_layers = network, network.config.aux_layers

    def new_cache(self, slots: int, capacity: int) -> Counts:
        return Counts()

    def read(self, cache: Any, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None: ...

    @torch.no_grad()
    def propose(
        self,
        cache: Any,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Any,
    ) -> torch.Tensor:
        last = torch.tensor([max(count, 1) - 1 for count in counts])
        newest = next_ids[torch.arange(len(counts)), last]
        chain = []
        for _ in range(k):
            logits = self._network.after(self._network.hidden(newest))
            newest = logits.argmax(-1) if choose is None else choose(logits)
            chain.append(newest)
        return torch.stack(chain, 1)
