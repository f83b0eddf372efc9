"""Drafting with heads: one state of the verifier is all they read, so there is nothing to keep between rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from speculators.algorithms.heads.network import HeadsNetwork
from speculators.errors import UsageError
from speculators.layers.packed_linear import pack_linears

Choose = Callable[[torch.Tensor], torch.Tensor]


class NoCache:
    """What stands for the cache of a draft that has none."""

    def crop(self, rows: torch.Tensor, lengths: Any) -> None:
        """Nothing is held, so nothing is forgotten."""

    def move(self, source: int, destination: int) -> None:
        """Nothing is held, so nothing moves."""


class HeadsProposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    Its matrices are copied into packed layouts (`compute_dtype`: type of the products, None the network's own); the
    network itself is left as it is.
    """

    drafts_at_once = False

    def __init__(self, network: HeadsNetwork, compute_dtype: torch.dtype | None = None) -> None:
        shared = {id(one): one for one in (*network.parameters(), *network.buffers())}  # not copied a second time
        self._network: HeadsNetwork = copy.deepcopy(network, shared)
        pack_linears(self._network, compute_dtype)
        self.config, self.target_ids = network.config, network.target_ids

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The verifier's stream before its final norm."""
        layers: tuple[int, ...] = self.config.aux_layers
        return layers

    def new_cache(self, slots: int, capacity: int) -> NoCache:
        """Heads look at nothing but the newest state."""
        return NoCache()

    def read(self, cache: NoCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Positions before the newest one do not matter."""

    @torch.no_grad()
    def propose(
        self,
        cache: NoCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Choose | None,
    ) -> torch.Tensor:
        """Draft `k` tokens after the last of each row's `counts[b]` new positions: verifier ids int64 [B, k].

        Raises UsageError when `k` is more than there are heads.
        """
        if k > self.config.heads:
            raise UsageError(f"the draft has {self.config.heads} heads and cannot propose {k} tokens in a round")
        rows_of, newest_of = torch.arange(len(counts)), torch.tensor([max(count, 1) - 1 for count in counts])
        state = self._network.begin(aux[rows_of, newest_of])
        chain = [next_ids[rows_of, newest_of].to(state.device)]
        for step in range(k):
            state = self._network.follow(step, state, chain[-1])
            logits = self._network.logits(step, state)
            ids = logits.argmax(-1) if choose is None else choose(logits)
            chain.append(ids if self.target_ids is None else self.target_ids[ids])
        return torch.stack(chain[1:], 1)
