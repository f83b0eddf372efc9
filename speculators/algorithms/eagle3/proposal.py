"""Drafting with EAGLE-3: a chain of tokens from the verifier's features, with a cache that only ever keeps true ones.

Position t of the cache holds the keys and values made from `g_t`, fused from the verifier's streams at t, and the
embedding of token t+1. A round first reads the positions committed since the last one, in one pass whose last output
proposes the first token; each later token costs one step in which the network's own last output stands in for g. What
those steps wrote is forgotten at the end of the round: next time the verifier's features of these positions are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.layers.packed_linear import merge_linears
from speculators.layers.slot_cache import Place, SlotCache

Choose = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Products:
    """The matrices of one layer as few, packed products."""

    qkv: nn.Module
    out: nn.Module
    gate_up: nn.Module
    down: nn.Module


class Eagle3Proposal:
    """A network for inference; `decoding/models.py` says what its methods promise.

    The weights are copied into packed layouts (`compute_dtype`: type of the products, None the network's own; bfloat16
    is faster and changes proposals a little, never the text). The network itself is left as it is.
    """

    def __init__(self, network: Eagle3Network, compute_dtype: torch.dtype | None = None) -> None:
        self._network, self.config = network, network.config
        self.target_ids = network.target_ids
        self._heads, self._groups = network.config.attention_heads, network.config.key_value_heads
        with torch.no_grad():
            self._layers = [_products(network, number, compute_dtype) for number in range(network.config.layers)]
            self._fc = merge_linears([network.fc], compute_dtype)
            self._head = merge_linears([network.lm_head], compute_dtype)
        self._cos = self._sin = torch.empty(0)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's streams that make the features, in their order."""
        return self.config.aux_layers

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        weight = self._network.embed_tokens.weight
        if len(self._cos) < capacity:
            cos, sin = self._network.tables(torch.arange(capacity, device=weight.device), capacity - 1)
            half = cos.shape[-1] // 2
            self._cos = cos.to(weight.dtype)
            # The sign of "rotate half" is in the table, so that turning takes three operations.
            self._sin = torch.cat([-sin[:, :half], sin[:, half:]], -1).to(weight.dtype)
        size = self.config.head_dim
        return SlotCache(len(self._layers), slots, self._groups, size, capacity, weight.dtype, weight.device)

    @torch.no_grad()
    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        """Read positions with features `aux` [B, m, F] and the tokens after them, `next_ids` [B, m]."""
        place = cache.place(rows, next_ids.shape[1])
        self._pass(cache, place, next_ids, self._fuse(aux), last=None)
        cache.advance(rows, place.width)

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
        place = cache.place(rows, next_ids.shape[1])
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        last = [max(count, 1) - 1 for count in counts]
        out = self._pass(cache, place, next_ids, self._fuse(aux), last)
        cache.advance(rows, place.width)
        if min(last) < place.width - 1 or 0 in counts:
            cache.crop(rows, kept)
        chain: list[torch.Tensor] = []
        while True:
            normed = self._network.norm(out)
            logits = self._head(normed)[:, 0]
            ids = logits.argmax(-1) if choose is None else choose(logits)
            chain.append(ids if self.target_ids is None else self.target_ids[ids])
            if len(chain) == k:
                break
            place = cache.place(rows, 1)
            state = normed if self.config.norm_output else out
            out = self._pass(cache, place, chain[-1][:, None], state, [0] * len(counts))
            cache.advance(rows, 1)
        if k > 1:
            cache.crop(rows, kept)
        return torch.stack(chain, 1)

    def _fuse(self, aux: torch.Tensor) -> torch.Tensor:
        """`Eagle3Network.fuse` with the packed matrix."""
        network = self._network
        aux = aux.to(network.embed_tokens.weight.dtype)
        if network.input_norm is not None:
            aux = network.input_norm(aux)
        if network.fc_norm is not None:
            parts = aux.chunk(len(network.fc_norm), -1)
            aux = torch.cat([norm(part) for norm, part in zip(network.fc_norm, parts, strict=True)], -1)
        fused: torch.Tensor = self._fc(aux)
        return fused.to(aux.dtype)  # the residual stream is never rounded

    def _pass(
        self, cache: SlotCache, place: Place, ids: torch.Tensor, state: torch.Tensor, last: Sequence[int] | None
    ) -> torch.Tensor:
        """All layers over new positions: `ids` [B, q] are the tokens after them, `state` [B, q, h].

        Returns the output [B, 1, h] at position `last[b]` of each row's q. With `last` None only keys and values are
        wanted, and the last layer stops there.
        """
        batch, width = ids.shape
        embeddings = self._network.embed(ids.to(state.device))
        cos, sin = self._cos[place.positions][:, :, None], self._sin[place.positions][:, :, None]
        for number, products in enumerate(self._layers):
            layer = self._network.layer(number)
            x, residual = layer.enter(embeddings, state)
            heads = products.qkv(x).view(batch, width, -1, self.config.head_dim)
            turned, values = heads[:, :, : -self._groups], heads[:, :, -self._groups :]
            turned = torch.addcmul(turned * cos, turned.roll(self.config.head_dim // 2, -1), sin)
            queries, keys = turned[:, :, : self._heads], turned[:, :, self._heads :]
            seen_keys, seen_values = cache.write(number, place, keys.transpose(1, 2), values.transpose(1, 2))
            mask = None
            if number < len(self._layers) - 1:
                mask = cache.mask(place, width)
            elif last is None:
                return state
            elif width > 1:  # of the last layer only one output a row is looked at
                at = torch.tensor(last, device=queries.device)
                queries, residual = _pick(queries, at), _pick(residual, at)
                mask = _seen(place, last)
            elif not place.level:
                mask = cache.mask(place, 1)
            attended = _attend(queries.transpose(1, 2), seen_keys, seen_values, mask)
            hidden = residual + products.out(attended.transpose(1, 2).flatten(2))
            gate, up = products.gate_up(layer.post_attention_layernorm(hidden)).chunk(2, -1)
            state = hidden + products.down(functional.silu(gate) * up)
        return state


def _products(network: Eagle3Network, number: int, dtype: torch.dtype | None) -> _Products:
    attention, mlp = network.layer(number).self_attn, network.layer(number).mlp
    return _Products(
        qkv=merge_linears([attention.q_proj, attention.k_proj, attention.v_proj], dtype),
        out=merge_linears([attention.o_proj], dtype),
        gate_up=merge_linears([mlp.gate_proj, mlp.up_proj], dtype),
        down=merge_linears([mlp.down_proj], dtype),
    )


def _pick(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """x [B, q, ...] at position `at[b]` of each row: [B, 1, ...]."""
    return x[torch.arange(len(at), device=x.device), at][:, None]


def _seen(place: Place, last: Sequence[int]) -> torch.Tensor | None:
    """What a single query at position `last[b]` of each row's new ones may see: bool [B, 1, 1, L], or None for all."""
    own = [start + at for start, at in zip(place.starts, last, strict=True)]
    if min(own) == place.end - 1:
        return None
    positions = torch.tensor(own, device=place.positions.device)
    return (torch.arange(place.end, device=positions.device) <= positions[:, None])[:, None, None]


def _attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Queries [B, heads, q, d] over keys and values [B, kv, L, d]: [B, heads, q, d].

    Without a mask a single query sees all keys, and several are whole sequences (causal).
    """
    batch, heads, width, size = queries.shape
    groups = heads // keys.shape[1]
    if width > 1:
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=groups > 1
        )
    # The query heads that share a key head become more queries of it: no key is repeated in memory.
    packed = queries.reshape(batch, keys.shape[1], groups, size)
    return functional.scaled_dot_product_attention(packed, keys, values, attn_mask=mask).view(batch, heads, 1, size)
