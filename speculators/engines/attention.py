"""Attention of new positions over slots of a cache, for whatever code computes the layers around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from speculators.layers.slot_cache import Place, SlotCache
from speculators.layers.trees import Tree, tree_mask

BENT_BLOCK = 256
"""Queries taken together where the scores are bent: their scores are held in float32."""
QUERY_BLOCK = 64
"""Queries taken together in blocked attention: small enough that their scores stay in the processor's caches."""


@dataclass(frozen=True)
class Bent:
    """What some models do to the scores before the softmax.

    `softcap`: scores become `softcap * tanh(score / softcap)` (Gemma 2). `sinks` [heads]: one more score a head, which
    takes its share of the softmax and has no value (gpt-oss).
    """

    softcap: float | None
    sinks: torch.Tensor | None


class Pass:
    """One forward pass: which slots it reads and writes, and the masks that all its layers share.

    Without a cache the rows are whole sequences, and nothing is kept of them. Attention's products are taken in
    `dtype`, that of the cache if there is one. With a `tree` the new positions are each row's newest token and the
    nodes after it.
    """

    def __init__(self, cache: SlotCache | None, place: Place, dtype: torch.dtype, tree: Tree | None = None) -> None:
        self.cache, self.place, self.dtype = cache, place, dtype
        self.is_fresh = tree is None and (cache is None or (place.level and place.starts[0] == 0))
        """Whether every row starts a sequence: attention is then causal among the new positions."""
        self.positions = place.positions
        """Places [B, q] of the new positions in their texts."""
        self.rotary = place.rotary
        """Rotary positions [B, q] of the new positions."""
        self._seen = None if cache is None or self.is_fresh else cache.mask(place, place.width)
        self._depths = None if tree is None else tree.depths
        if tree is not None:
            starts = torch.tensor(place.starts, device=place.positions.device)
            self.positions = starts[:, None] + tree.depths
            self.rotary = place.rotary[:, :1] + tree.depths
            self._seen = tree_mask(tree.seen, starts, place.end)
        self._masks: dict[tuple[int | None, int, torch.dtype], torch.Tensor | None] = {}

    def put(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep a layer's new keys and values [B, kv, q, d]; return all that its queries may look at."""
        stored = None if self.cache is None else self.cache.write(layer, self.place, key, value)
        if stored is None or self.is_fresh:
            return key.to(self.dtype), value.to(self.dtype)
        return stored

    def mask(self, window: int | None, groups: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """What to add to the scores of `groups` query heads laid one after another: [B, 1, groups * q, L], or None."""
        if window is not None and self.place.end <= window:
            window = None
        which = (window, groups, dtype)
        if which not in self._masks:
            seen = self._seen if window is None else self._windowed(window, device)
            self._masks[which] = None if seen is None else _additive(seen, groups, dtype)
        return self._masks[which]

    def seen(self, window: int | None, device: torch.device) -> torch.Tensor:
        """Which positions each new one sees, of a layer that sees `window` of them or all: bool [B, 1, q, L]."""
        if window is not None and self.place.end > window:
            return self._windowed(window, device)
        if self._seen is not None:
            return self._seen
        return (torch.arange(self.place.end, device=device) <= self.positions[:, :, None])[:, None]

    def _windowed(self, window: int, device: torch.device) -> torch.Tensor:
        """The mask of a layer that sees `window` positions, itself included: bool [B, 1, q, L]."""
        key, query = torch.arange(self.place.end, device=device), self.positions[:, :, None]
        if self._depths is None or self._seen is None:
            return ((key <= query) & (key > query - window))[:, None]
        # Nodes stand in the cache one after another, at the positions of their depths.
        keys = key.expand(len(self.positions), -1).scatter(1, self.place.positions, self.positions)[:, None]
        return self._seen & (keys > query - window)[:, None]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    current: Pass,
    scaling: float | None = None,
    window: int | None = None,
    bent: Bent | None = None,
) -> torch.Tensor:
    """Attention of query [B, heads, q, d] over key and value [B, kv, L, d]: [B, heads, q, d] in the key's type.

    `window`: how many positions, itself included, a query sees; None is all of them. `scaling` None is d ** -0.5.
    """
    batch, heads, width, size = query.shape
    groups = heads // key.shape[1]
    query = query.to(key.dtype)
    if bent is not None:
        return _bent(query, key, value, current, size**-0.5 if scaling is None else scaling, window, bent)
    if current.is_fresh and (window is None or width <= window):
        if width > 1 and key.dtype == torch.bfloat16 and key.device.type == "cpu":
            return _causal_in_blocks(query, key, value, size**-0.5 if scaling is None else scaling)
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=width > 1, scale=scaling, enable_gqa=groups > 1
        )
    # The query heads that share a key head become more queries of that head: no key is ever repeated in memory.
    mask = current.mask(window, groups, key.dtype, key.device)
    packed = query.reshape(batch, key.shape[1], groups * width, size)
    if key.stride(-1) == 1:
        out = functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scaling)
    else:
        # Keys stored by dimension: two plain products read them at memory speed, the fused kernel would copy them.
        scores = torch.matmul(packed * (size**-0.5 if scaling is None else scaling), key.transpose(2, 3))
        if mask is not None:
            scores += mask
        out = torch.matmul(torch.softmax(scores, dim=-1), value)
    return out.reshape(batch, heads, width, value.shape[-1])


def _causal_in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention among new positions by plain products over blocks of queries.

    On a CPU in bfloat16 this is two to three times faster than torch's fused kernel, whose products are not oneDNN's.
    """
    batch, heads, width, size = query.shape
    kv = key.shape[1]
    query = query * scaling
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=key.dtype, device=key.device).triu(1)
    out = torch.empty(batch, heads, width, value.shape[-1], dtype=key.dtype, device=key.device)
    for start in range(0, width, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, width)
        count = end - start
        block = query[:, :, start:end].reshape(batch, kv, -1, size)
        scores = torch.matmul(block, key[:, :, :end].transpose(2, 3)).view(batch, heads, count, end)
        scores[..., start:] += future[:count, :count]
        weights = torch.softmax(scores, dim=-1).view(batch, kv, -1, end)
        out[:, :, start:end] = torch.matmul(weights, value[:, :, :end]).view(batch, heads, count, -1)
    return out


def _bent(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    current: Pass,
    scaling: float,
    window: int | None,
    bent: Bent,
) -> torch.Tensor:
    """Attention by plain products over blocks of queries, with scores that no fused kernel can bend."""
    batch, heads, width, size = query.shape
    kv, length = key.shape[1], key.shape[2]
    seen = current.seen(window, key.device)
    out = torch.empty(batch, heads, width, value.shape[-1], dtype=key.dtype, device=key.device)
    for start in range(0, width, BENT_BLOCK):
        block = query[:, :, start : start + BENT_BLOCK]
        count = block.shape[2]
        scores = torch.matmul(block.reshape(batch, kv, -1, size) * scaling, key.transpose(2, 3)).float()
        if bent.softcap is not None:
            scores = torch.tanh(scores / bent.softcap) * bent.softcap
        unseen = ~seen[:, :, start : start + BENT_BLOCK]
        scores = scores.view(batch, heads, count, length).masked_fill(unseen, float("-inf"))
        if bent.sinks is not None:
            sinks = bent.sinks.float().view(1, heads, 1, 1).expand(batch, heads, count, 1)
            weights = torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
        else:
            weights = torch.softmax(scores, dim=-1)
        product = torch.matmul(weights.to(value.dtype).view(batch, kv, -1, length), value)
        out[:, :, start : start + BENT_BLOCK] = product.view(batch, heads, count, -1)
    return out


def _additive(seen: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    return bias.repeat(1, 1, groups, 1)
