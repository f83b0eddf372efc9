"""Drafting with a verifier's multi-token-prediction head: a chain, with a cache that only ever keeps true states.

Position t of the cache holds the keys and values of step 0, made from the verifier's state at t and the token after it.
A round first reads the positions committed since the last one; each later token costs one more pass of the layer, in
which its own state stands in for the verifier's. What those passes wrote is forgotten at the end of the round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from speculators.algorithms.mtp.network import MtpNetwork
from speculators.layers.cached_attention import cached_attention
from speculators.layers.packed_linear import PackedLinear, can_pack
from speculators.layers.slot_cache import Place, SlotCache

Choose = Callable[[torch.Tensor], torch.Tensor]


class MtpProposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    `compute_dtype` is the type of the product with the verifier's head, the largest there is; None is the network's.
    """

    target_ids: torch.Tensor | None = None
    drafts_at_once = False

    def __init__(self, network: MtpNetwork, compute_dtype: torch.dtype | None = None) -> None:
        self._network, self.config = network, network.config
        dtype = compute_dtype or network.dtype
        self._packed = PackedLinear(network.head, None, dtype, cast_back=False) if can_pack(dtype) else None

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The id of the verifier's stream that the head reads."""
        return self.config.aux_layers

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        config, place = self.config, self._network.verifier_norm.device
        return SlotCache(1, slots, config.key_value_heads, config.head_dim, capacity, self._network.dtype, place)

    @torch.no_grad()
    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions with features `aux` [B, m, h] and the tokens after them, `next_ids` [B, m]."""
        self._pass(cache, rows, next_ids, self._network.state(aux))

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
        """Read the first `counts[b]` of each row's new positions, then draft `k` tokens: int64 [B, k]."""
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        out = self._pass(cache, rows, next_ids, self._network.state(aux))
        each = torch.arange(len(counts), device=out.device)
        out = out[each, torch.tensor([max(count, 1) - 1 for count in counts], device=out.device)][:, None]
        cache.crop(rows, kept)
        chain: list[torch.Tensor] = []
        while True:
            logits = self._logits(out)[:, 0]
            chain.append(logits.argmax(-1) if choose is None else choose(logits))
            if len(chain) == k:
                break
            out = self._pass(cache, rows, chain[-1][:, None], self._network.next_state(out))
        cache.crop(rows, kept)
        return torch.stack(chain, 1)

    def _logits(self, out: torch.Tensor) -> torch.Tensor:
        """Logits [B, q, V] from the layer's output [B, q, h]."""
        normed = self._network.normed(out)
        if self._packed is None:
            return functional.linear(normed, self._network.head)
        logits: torch.Tensor = self._packed(normed)
        return logits

    def _pass(self, cache: SlotCache, rows: torch.Tensor, ids: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The layer's output [B, q, h] over new positions, which are written; `ids` [B, q] are the tokens after."""
        network, layer, width = self._network, self._network.layer, ids.shape[1]
        place: Place = cache.place(rows, width)
        tables = network.tables(place.rotary, cache.capacity)
        x, residual = layer.enter(network.embed(ids.to(state.device), place.positions), state)
        queries, gates = layer.self_attn.queries(x, tables)
        new, mask = layer.self_attn.keys_values(x, tables), cache.mask(place, width)
        attended = cached_attention(cache, 0, place, queries, new, mask)
        cache.advance(rows, width)
        return layer.leave(attended, gates, residual)


Proposal = MtpProposal
