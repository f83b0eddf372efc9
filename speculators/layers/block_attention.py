"""Attention of blocks: the queries of a block see the keys of its document up to the block, and the block's own.

No block sees another, so the prefix is one product per document and the own part a small one per block. Scores are
made for as many blocks at a time as fit, and made again in the backward pass, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.checkpoint import checkpoint

from speculators.layers.attention import DocumentSpan

SCORES = 1 << 25
"""Scores computed at a time: 128 MiB in float32."""


def block_attention(
    q: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor],
    documents: Sequence[DocumentSpan],
    scores: int = SCORES,
) -> torch.Tensor:
    """Attend `q` [n, B, heads, d] of n blocks to `prefix` keys and values [s, kv, d] and to `own` [n, B, kv, d].

    Returns [n, B, heads, d]. A block's queries see the first `visible` keys of its document, and all of the block.
    Softmax is over both parts together, scaled by 1/sqrt(d). `documents` have blocks as their queries.
    """
    out = []
    for document in documents:
        keys, values = (one[document.keys] for one in prefix)
        count = document.queries.stop - document.queries.start
        size = max(1, scores // (q.shape[1] * q.shape[2] * (len(keys) + q.shape[1])))
        for start in range(0, count, size):
            visible = document.visible[start : start + size]
            blocks = slice(document.queries.start + start, document.queries.start + start + len(visible))
            seen = int(visible.max())
            parts = q[blocks], keys[:seen], values[:seen], own[0][blocks], own[1][blocks], visible.to(q.device)
            is_bounded = count > size and torch.is_grad_enabled()
            out.append(checkpoint(_attend, *parts, use_reentrant=False) if is_bounded else _attend(*parts))
    return torch.cat(out)


def _attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    own_keys: torch.Tensor,
    own_values: torch.Tensor,
    visible: torch.Tensor,
) -> torch.Tensor:
    """The blocks of one document; grouped heads are more rows of the same product."""
    n, width, heads, d = q.shape
    seen, groups = len(keys), keys.shape[1]
    rows = q.view(n, width, groups, heads // groups, d) * d**-0.5
    by_group = rows.permute(2, 0, 3, 1, 4).reshape(groups, -1, d)  # [kv, n * r * B, d]
    before = torch.bmm(by_group, keys.permute(1, 2, 0)).view(groups, n, -1, width, seen)
    hidden = torch.arange(seen, device=q.device) >= visible[:, None]
    before = before.masked_fill(hidden[None, :, None, None], float("-inf"))
    by_block = rows.permute(0, 2, 3, 1, 4).reshape(n * groups, -1, d)  # [n * kv, r * B, d]
    inside = torch.bmm(by_block, own_keys.permute(0, 2, 3, 1).reshape(n * groups, d, width))
    inside = inside.view(n, groups, -1, width, width).transpose(0, 1)
    shares = torch.cat([before, inside], -1).softmax(-1)  # [kv, n, r, B, s + B]
    found = torch.bmm(shares[..., :seen].reshape(groups, -1, seen), values.transpose(0, 1)).view(
        groups, n, -1, width, d
    )
    within = shares[..., seen:].transpose(0, 1).reshape(n * groups, -1, width)
    own = torch.bmm(within, own_values.transpose(1, 2).reshape(n * groups, width, d)).view(n, groups, -1, width, d)
    mixed = found.view(groups, n, -1, width, d) + own.transpose(0, 1)  # [kv, n, r, B, d]
    return mixed.permute(1, 3, 0, 2, 4).reshape(n, width, heads, d)
