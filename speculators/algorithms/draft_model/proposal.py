"""Drafting with a causal model: the text is read as it is committed, and each proposal is one more token.

The model reads one token more than the verifier's cache holds: the newest. What the cache keeps ends before it, so that
every row holds as many positions as the loop counts; reading that token again in the next round's pass costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch.nn import functional

from speculators.algorithms.draft_model.network import DraftModelNetwork
from speculators.layers.cached_attention import cached_attention
from speculators.layers.packed_linear import PackedLinear, can_pack, packed_copy
from speculators.layers.slot_cache import Place, SlotCache

Choose = Callable[[torch.Tensor], torch.Tensor]


class DraftModelProposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    Its matrices are copied into packed layouts (`compute_dtype`: type of the products, None the network's own); the
    network itself is left as it is.
    """

    target_ids: torch.Tensor | None = None
    drafts_at_once = False
    reads_tokens: Literal[True] = True

    def __init__(self, network: DraftModelNetwork, compute_dtype: torch.dtype | None = None) -> None:
        self._network, self.config = packed_copy(network, compute_dtype), network.config
        weight, dtype = network.head_weight.detach(), compute_dtype or network.dtype
        self._tied = None
        if network.lm_head is None and can_pack(dtype, weight.device):
            self._tied = PackedLinear(weight, None, dtype)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """None of the verifier's streams."""
        return self.config.aux_layers

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        config, weight = self.config, self._network.embed_tokens.weight
        groups, size = config.key_value_heads, config.head_dim
        return SlotCache(config.layers, slots, groups, size, capacity, weight.dtype, weight.device)

    @torch.no_grad()
    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions whose tokens are `aux` int64 [B, m, 1]."""
        self._pass(cache, rows, aux[..., 0])

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
        """Read the first `counts[b]` of each row's new tokens and its newest one, then draft `k`: int64 [B, k]."""
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        ids = torch.cat([aux[:, :1, 0].to(next_ids.device), next_ids], 1)  # each token is the next of the one before
        out = self._pass(cache, rows, ids)
        each = torch.arange(len(counts), device=out.device)
        out = out[each, torch.tensor(counts, device=out.device)]
        # The first step after a pass over rows of different counts goes on behind each row's own newest token.
        cache.crop(rows, [length + 1 for length in kept])
        chain: list[torch.Tensor] = []
        while True:
            logits = self._logits(out)
            chain.append(logits.argmax(-1) if choose is None else choose(logits))
            if len(chain) == k:
                break
            out = self._pass(cache, rows, chain[-1][:, None])[:, 0]
        cache.crop(rows, kept)
        return torch.stack(chain, 1)

    def _logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] from the last layer's output [B, h]."""
        network = self._network
        normed = network.norm(out)
        head = self._tied if network.lm_head is None else network.lm_head
        if head is None:
            return functional.linear(normed, network.embed_tokens.weight)
        logits: torch.Tensor = head(normed)
        return logits

    def _pass(self, cache: SlotCache, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The last layer's output [B, q, h] at new positions with the tokens `ids` [B, q], which are written."""
        network, width = self._network, ids.shape[1]
        place: Place = cache.place(rows, width)
        tables = network.tables(place.positions, cache.capacity)
        mask = cache.mask(place, width)
        state = network.embed(ids.to(cache.device))
        for number in range(self.config.layers):
            layer = network.layer(number)
            x, residual = layer.enter(None, state)
            new = layer.keys_values(x, tables)
            attended = cached_attention(cache, number, place, layer.queries(x, tables), new, mask)
            state = layer.leave(attended, residual)
        cache.advance(rows, width)
        return state


Proposal = DraftModelProposal
