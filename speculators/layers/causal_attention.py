"""Attention of whole documents that lie one after another: every position sees its own document up to itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional


def causal_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Sequence[slice]) -> torch.Tensor:
    """Attend `q` [n, heads, d] to `k` and `v` [n, kv, d], scaled by 1/sqrt(d): [n, heads, d].

    `documents` are the rows of each, in order, and all rows together. Torch's fused kernels do it, whose memory grows
    with the length of a document and not with its square.
    """
    attended = []
    for rows in documents:
        heads, keys, values = (one[rows].transpose(0, 1)[None] for one in (q, k, v))  # [1, heads, m, d]
        found = functional.scaled_dot_product_attention(
            heads, keys, values, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
        attended.append(found[0].transpose(0, 1))
    return torch.cat(attended)
