"""Drafting one token after another from the verifier's features, with a cache that only ever keeps true ones.

Position t of the cache holds the keys and values made from the features of t and the embedding of token t+1. A round
first reads the positions committed since the last one, in one pass whose last output proposes the first token; each
later token costs one step in which the network's own last state stands in for the features. What those steps wrote is
forgotten at the end of the round: next time the verifier's features of these positions are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.tree_growth import as_tree, growing
from speculators.layers.decoder import DecoderLayer
from speculators.layers.packed_linear import merge_linears
from speculators.layers.slot_cache import Place, SlotCache
from speculators.layers.trees import AnyShape, Tree, tree_mask

Choose = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Products:
    """The matrices of one layer as few, packed products."""

    qkv: nn.Module
    out: nn.Module
    gate_up: nn.Module
    down: nn.Module


class ChainProposal:
    """A network of decoder layers for inference; `decoding/models.py` says what its methods promise.

    An algorithm says in `_fuse`, `_enter` and `_read_out` what its layers read and what is made of their output. The
    weights are copied into packed layouts (`compute_dtype`: type of the products, None the network's own; bfloat16 is
    faster and changes proposals a little, never the text). The network itself is left as it is.
    """

    drafts_at_once = False

    def __init__(self, network: Any, layers: Sequence[DecoderLayer], compute_dtype: torch.dtype | None = None) -> None:
        """`network` has a `config`, `embed` and `tables`."""
        self.config: Any = network.config
        self.target_ids: torch.Tensor | None = None
        self._embed, self._tables = network.embed, network.tables
        self._weight: torch.Tensor = network.embed_tokens.weight
        self._blocks = list(layers)
        self._heads, self._groups = self.config.attention_heads, self.config.key_value_heads
        with torch.no_grad():
            self._layers = [_products(layer, compute_dtype) for layer in layers]
        self._cos = self._sin = torch.empty(0)

    def _fuse(self, aux: torch.Tensor) -> torch.Tensor:
        """The state [B, m, h] that the first layer reads, from the verifier's streams [B, m, F]."""
        raise NotImplementedError

    def _enter(self, number: int, embeddings: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the projections of a layer read, and the residual; `embeddings` and `state` are [B, q, h]."""
        raise NotImplementedError

    def _read_out(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, q, Vd] from the last layer's output [B, q, h], and the state that the next step reads."""
        raise NotImplementedError

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Ids of the verifier's streams that make the features, in their order."""
        found: tuple[int, ...] = self.config.aux_layers
        return found

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        """An empty cache for `slots` sequences of at most `capacity` positions."""
        weight = self._weight
        if len(self._cos) < capacity:
            cos, sin = self._tables(torch.arange(capacity, device=weight.device), capacity - 1)
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
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        out = self._newest(cache, rows, next_ids, aux, counts)
        if min(counts) < next_ids.shape[1]:
            cache.crop(rows, kept)
        chain: list[torch.Tensor] = []
        while True:
            scores, state = self._read_out(out)
            logits = scores[:, 0]
            ids = logits.argmax(-1) if choose is None else choose(logits)
            chain.append(ids if self.target_ids is None else self.target_ids[ids])
            if len(chain) == k:
                break
            place = cache.place(rows, 1)
            out = self._pass(cache, place, chain[-1][:, None], state, [0] * len(counts))
            cache.advance(rows, 1)
        if k > 1:
            cache.crop(rows, kept)
        return torch.stack(chain, 1)

    @torch.no_grad()
    def propose_tree(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        shape: AnyShape,
    ) -> Tree:
        """Read as `propose` does, then draft a tree for each row, level by level (`algorithms/tree_growth.py`)."""
        kept = [length + count for length, count in zip(lengths, counts, strict=True)]
        out = self._newest(cache, rows, next_ids, aux, counts)
        if min(counts) < next_ids.shape[1]:
            cache.crop(rows, kept)
        growth, at = growing(shape), None
        starts = torch.tensor(kept, device=out.device)
        own = torch.zeros(len(kept), 1, 0, dtype=torch.bool, device=out.device)  # [B, w, nodes read]
        for level in range(shape.depth):
            logits, state = self._read_out(out)
            frontier = growth.grow(logits)
            if level + 1 == shape.depth:
                break
            # A node reads its parent's state, and sees what that one saw, and itself.
            above = frontier.parents[..., None]
            state = state.gather(1, above.expand(-1, -1, state.shape[-1]))
            width = frontier.tokens.shape[1]
            itself = torch.eye(width, dtype=torch.bool, device=out.device).expand(len(kept), -1, -1)
            own = torch.cat([own.gather(1, above.expand(-1, -1, own.shape[-1])), itself], -1)
            place = cache.place(rows, width)
            mask = tree_mask(own, starts, place.end)
            ids = frontier.tokens if self.target_ids is None else self.target_ids[frontier.tokens]
            at = place.rotary[:, :1] if at is None else at + 1  # all nodes of a level are at one position
            out = self._pass(cache, place, ids, state, "all", (at, mask))
            cache.advance(rows, width)
        cache.crop(rows, kept)
        return as_tree(*growth.harvest(), self.target_ids)

    def _newest(
        self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """Read all new positions; the output [B, 1, h] at the last of each row's `counts[b]`."""
        place = cache.place(rows, next_ids.shape[1])
        out = self._pass(cache, place, next_ids, self._fuse(aux), [max(count, 1) - 1 for count in counts])
        cache.advance(rows, place.width)
        return out

    def _pass(
        self,
        cache: SlotCache,
        place: Place,
        ids: torch.Tensor,
        state: torch.Tensor,
        last: Sequence[int] | Literal["all"] | None,
        tree: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """All layers over new positions: `ids` [B, q] are the tokens after them, `state` [B, q, h].

        Returns the output [B, 1, h] at position `last[b]` of each row's q, or [B, q, h] for "all". With `last` None
        only keys and values are wanted, and the last layer stops there. Nodes of a tree bring their rotary positions
        [B, 1] and their mask [B, 1, q, L].
        """
        batch, width = ids.shape
        embeddings = self._embed(ids.to(state.device))
        positions = place.rotary if tree is None else tree[0]
        cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        for number, products in enumerate(self._layers):
            layer = self._blocks[number]
            x, residual = self._enter(number, embeddings, state)
            heads = products.qkv(x).view(batch, width, -1, self.config.head_dim)
            turned, values = heads[:, :, : -self._groups], heads[:, :, -self._groups :]
            turned = torch.addcmul(turned * cos, turned.roll(self.config.head_dim // 2, -1), sin)
            queries, keys = turned[:, :, : self._heads], turned[:, :, self._heads :]
            seen_keys, seen_values = cache.write(number, place, keys.transpose(1, 2), values.transpose(1, 2))
            mask = None
            if number < len(self._layers) - 1 or last == "all":
                mask = cache.mask(place, width) if tree is None else tree[1]
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


def _products(layer: DecoderLayer, dtype: torch.dtype | None) -> _Products:
    attention, mlp = layer.self_attn, layer.mlp
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
