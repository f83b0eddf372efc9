"""Attention of new positions over slots of a cache, for whatever code computes the layers around it."""

from __future__ import annotations

import torch
from torch.nn import functional

from speculators.layers.slot_cache import Place, SlotCache

QUERY_BLOCK = 64
"""Queries taken together in blocked attention: small enough that their scores stay in the processor's caches."""


class Pass:
    """One forward pass: which slots it reads and writes, and the masks that all its layers share.

    Without a cache the rows are whole sequences, and nothing is kept of them. Attention's products are taken in
    `dtype`, that of the cache if there is one.
    """

    def __init__(self, cache: SlotCache | None, place: Place, dtype: torch.dtype) -> None:
        self.cache, self.place, self.dtype = cache, place, dtype
        self.is_fresh = cache is None or (place.level and place.starts[0] == 0)
        """Whether every row starts a sequence: attention is then causal among the new positions."""
        self._seen = None if cache is None or self.is_fresh else cache.mask(place, place.width)
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
            seen = self._seen if window is None else _windowed(self.place, window, device)
            self._masks[which] = None if seen is None else _additive(seen, groups, dtype)
        return self._masks[which]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    current: Pass,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of query [B, heads, q, d] over key and value [B, kv, L, d]: [B, heads, q, d] in the key's type.

    `window`: how many positions, itself included, a query sees; None is all of them. `scaling` None is d ** -0.5.
    """
    batch, heads, width, size = query.shape
    groups = heads // key.shape[1]
    query = query.to(key.dtype)
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


def _windowed(place: Place, window: int, device: torch.device) -> torch.Tensor:
    """The mask of a layer that sees `window` positions, itself included: bool [B, 1, q, L]."""
    key, query = torch.arange(place.end, device=device), place.positions[:, :, None]
    return ((key <= query) & (key > query - window))[:, None]


def _additive(seen: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
    return bias.repeat(1, 1, groups, 1)
