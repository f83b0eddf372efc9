"""Attention of blocks: the queries of a block see the keys of its document up to the block, and the block's own.

No block sees another, so the prefix is one product per document and the own part a small one per block. Scores are
made for as many blocks at a time as fit, and made again in the backward pass, so that memory does not grow with them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.checkpoint import checkpoint

from speculators.layers.documents import Documents

SCORES = 1 << 25
"""Scores computed at a time: 128 MiB in float32."""


@dataclass(frozen=True)
class Window:
    """Queries see `size` positions, their own and those before it; unless `is_causal`, as many after it too."""

    size: int
    is_causal: bool

    def sees(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Whether queries at positions int64 [...] see keys at positions int64 [...], broadcast."""
        back = queries - keys
        return (back < self.size) & (back >= 0 if self.is_causal else back > -self.size)


def block_attention(
    q: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor],
    documents: Documents,
    window: Window | None = None,
    scores: int = SCORES,
) -> torch.Tensor:
    """Attend `q` [n, B, heads, d] of n blocks to `prefix` keys and values [s, kv, d] and to `own` [n, B, kv, d].

    Returns [n, B, heads, d]. A block's queries see the first `visible` keys of its document, and all of the block. With
    a `window` they see what of these it leaves them from their place: the keys of a document are at 0, 1, ..., and a
    block follows those that are visible to it. Softmax is over both parts together, scaled by 1/sqrt(d). `documents`
    have blocks as their queries.
    """
    out = []
    for document, there in zip(documents, documents.visible(q.device), strict=True):
        keys, values = (one[document.keys] for one in prefix)
        count = document.queries.stop - document.queries.start
        size = max(1, scores // (q.shape[1] * q.shape[2] * (len(keys) + q.shape[1])))
        for start in range(0, count, size):
            visible = document.visible[start : start + size]
            blocks = slice(document.queries.start + start, document.queries.start + start + len(visible))
            seen = int(visible.max())
            first = 0 if window is None else min(max(0, int(visible.min()) - window.size + 1), seen - 1)
            parts = (
                *(q[blocks], keys[first:seen], values[first:seen], own[0][blocks], own[1][blocks]),
                *(there[start : start + size], first, window),
            )
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
    first: int,
    window: Window | None,
) -> torch.Tensor:
    """The blocks of one document, `keys` from its place `first` on; grouped heads are more rows of one product."""
    n, width, heads, d = q.shape
    seen, groups = len(keys), keys.shape[1]
    rows = q.view(n, width, groups, heads // groups, d) * d**-0.5
    by_group = rows.permute(2, 0, 3, 1, 4).reshape(groups, -1, d)  # [kv, n * r * B, d]
    before = torch.bmm(by_group, keys.permute(1, 2, 0)).view(groups, n, -1, width, seen)
    places, slots = torch.arange(first, first + seen, device=q.device), torch.arange(width, device=q.device)
    hidden = (places >= visible[:, None])[:, None]  # [n, 1 or B, s]
    if window is not None:
        hidden = hidden | ~window.sees((visible[:, None] + slots)[..., None], places)
    before = before.masked_fill(hidden[None, :, None], float("-inf"))
    by_block = rows.permute(0, 2, 3, 1, 4).reshape(n * groups, -1, d)  # [n * kv, r * B, d]
    inside = torch.bmm(by_block, own_keys.permute(0, 2, 3, 1).reshape(n * groups, d, width))
    inside = inside.view(n, groups, -1, width, width).transpose(0, 1)
    if window is not None:
        inside = inside.masked_fill(~window.sees(slots[:, None], slots), float("-inf"))
    shares = torch.cat([before, inside], -1).softmax(-1)  # [kv, n, r, B, s + B]
    found = torch.bmm(shares[..., :seen].reshape(groups, -1, seen), values.transpose(0, 1)).view(
        groups, n, -1, width, d
    )
    within = shares[..., seen:].transpose(0, 1).reshape(n * groups, -1, width)
    own = torch.bmm(within, own_values.transpose(1, 2).reshape(n * groups, width, d)).view(n, groups, -1, width, d)
    mixed = found.view(groups, n, -1, width, d) + own.transpose(0, 1)  # [kv, n, r, B, d]
    return mixed.permute(1, 3, 0, 2, 4).reshape(n, width, heads, d)
