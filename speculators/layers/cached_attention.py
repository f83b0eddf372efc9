"""Attention of new positions over a cache that they join."""

from __future__ import annotations

import torch
from torch.nn import functional

from speculators.layers.slot_cache import Place, SlotCache


def cached_attention(
    cache: SlotCache,
    layer: int,
    place: Place,
    queries: torch.Tensor,
    keys_values: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Write new keys and values [B, q, kv, d], and let queries [B, q, heads, d] see them and what is before them.

    `mask` is the cache's own, `cache.mask(place, q)`. The result is [B, q, heads, d].
    """
    keys, values = cache.write(layer, place, *(one.transpose(1, 2) for one in keys_values))
    attended = functional.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None and queries.shape[1] > 1,
        enable_gqa=queries.shape[2] != keys.shape[1],
    )
    return attended.transpose(1, 2)
