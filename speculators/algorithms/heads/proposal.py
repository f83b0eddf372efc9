"""Drafting with heads: one state of the verifier is all they read, so there is nothing to keep between rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from speculators.algorithms.heads.network import HeadsNetwork
from speculators.algorithms.tree_growth import as_tree, growing
from speculators.errors import UsageError
from speculators.layers.packed_linear import packed_copy
from speculators.layers.trees import AnyShape, Tree

Choose = Callable[[torch.Tensor], torch.Tensor]


class NoCache:
    """What stands for the cache of a draft that has none."""

    def crop(self, rows: torch.Tensor, lengths: Any) -> None:
        """Nothing is held, so nothing is forgotten."""

    def turn(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Heads have no positions."""

    def move(self, source: int, destination: int) -> None:
        """Nothing is held, so nothing moves."""


class HeadsProposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    Its matrices are copied into packed layouts (`compute_dtype`: type of the products, None the network's own); the
    network itself is left as it is.
    """

    drafts_at_once = False

    def __init__(self, network: HeadsNetwork, compute_dtype: torch.dtype | None = None) -> None:
        self._network = packed_copy(network, compute_dtype)
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
        state, newest = self._newest(next_ids, aux, counts, k)
        chain = [newest]
        for step in range(k):
            state = self._network.follow(step, state, chain[-1])
            logits = self._network.logits(step, state)
            ids = logits.argmax(-1) if choose is None else choose(logits)
            chain.append(ids if self.target_ids is None else self.target_ids[ids])
        return torch.stack(chain[1:], 1)

    @torch.no_grad()
    def propose_tree(
        self,
        cache: NoCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        shape: AnyShape,
    ) -> Tree:
        """Draft a tree after each row, level by level, a head for each.

        Heads that see no tokens say the same after all nodes of a level: the tree is made of products of their best.
        """
        state, newest = self._newest(next_ids, aux, counts, shape.depth)
        network, growth = self._network, growing(shape)
        states, tokens = state[:, None], newest[:, None]  # [B, w, ...], [B, w]
        for level in range(shape.depth):
            if network.reads_tokens:
                followed = network.follow(level, states.flatten(0, 1), tokens.flatten())
                logits = network.logits(level, followed).view(*tokens.shape, -1)
                frontier = growth.grow(logits)
                above = frontier.parents[..., None]
                states = followed.view(*tokens.shape, -1)
                states = states.gather(1, above.expand(-1, -1, states.shape[-1]))
            else:
                frontier = growth.grow(network.logits(level, state)[:, None].expand(-1, tokens.shape[1], -1))
            tokens = frontier.tokens if self.target_ids is None else self.target_ids[frontier.tokens]
        return as_tree(*growth.harvest(), self.target_ids)

    def _newest(
        self, next_ids: torch.Tensor, aux: torch.Tensor, counts: Sequence[int], k: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state [B, h] that `k` heads begin with, and the newest token int64 [B]."""
        if k > self.config.heads:
            raise UsageError(f"the draft has {self.config.heads} heads and cannot propose {k} tokens in a round")
        rows, places = torch.arange(len(counts)), torch.tensor([max(count, 1) - 1 for count in counts])
        state = self._network.begin(aux[rows, places])
        return state, next_ids[rows, places].to(state.device)
