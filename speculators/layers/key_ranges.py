"""Which prefix keys the queries of a packed batch see, as FlexAttention wants it: every query a range of them.

Queries lie document by document, and of its document a query sees the first few keys, or with a window the last of
these. So a tile of 128 queries and 128 keys is known by its ranges' ends, without a mask of all queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask

from speculators.layers.block_attention import Window
from speculators.layers.documents import Documents

TILE = 128
"""Queries and keys of a tile: FlexAttention's own choice."""


@dataclass(frozen=True)
class KeyRanges:
    """Query i sees the keys from `first[i]` up to, not including, `stop[i]`: int32 [n] each."""

    first: torch.Tensor
    stop: torch.Tensor

    @classmethod
    def of(cls, documents: Documents, device: torch.device, width: int = 1, window: Window | None = None) -> KeyRanges:
        """Of `documents` whose queries are blocks of `width` queries, through a `window` if there is one."""
        visible = torch.cat([span.visible for span in documents])
        begins = torch.cat([torch.full_like(span.visible, span.keys.start) for span in documents])
        begins, visible = torch.stack([begins, visible]).int().to(device, non_blocking=True)
        places = visible[:, None] + torch.arange(width, device=device, dtype=torch.int32)  # of queries, in documents
        hidden = torch.zeros_like(places) if window is None else (places - window.size + 1).clamp(min=0)
        stop = (begins + visible)[:, None].expand_as(places)
        return cls((begins[:, None] + hidden).flatten(), stop.flatten())

    def block_mask(self, keys: int) -> BlockMask:
        """The tiles that are seen in part and as a whole, of n queries and so many `keys`.

        Their tables are square, filled up with tiles that nobody sees: two sizes that are equal by chance when a graph
        is compiled would be equal for ever in it.
        """
        first, stop, queries = self.first, self.stop, len(self.first)

        def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return (key >= first[query]) & (key < stop[query])

        tiles = -(-max(queries, keys) // TILE)
        missing = tiles * TILE - queries  # these see nothing
        low = functional.pad(first, (0, missing)).view(tiles, TILE, 1)
        high = functional.pad(stop, (0, missing)).view(tiles, TILE, 1)
        begin = TILE * torch.arange(tiles, device=first.device, dtype=torch.int32)
        touched = (torch.maximum(low, begin) < torch.minimum(high, begin + TILE)).any(1)
        whole = ((low <= begin) & (high >= begin + TILE)).all(1)
        return BlockMask.from_kv_blocks(
            *_listed(touched & ~whole),
            *_listed(whole),
            BLOCK_SIZE=TILE,
            mask_mod=sees,
            seq_lengths=(queries, keys),
        )


def prefix_mask(
    documents: Documents, keys: int, device: torch.device, width: int = 1, window: Window | None = None
) -> BlockMask:
    """Which of a batch's `keys` the queries of `documents` see; made once for all layers and steps that ask alike."""

    def make() -> BlockMask:
        return KeyRanges.of(documents, device, width, window).block_mask(keys)

    found: BlockMask = documents.once((device, keys, width, window), make)
    return found


def _listed(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many tiles of each row are marked, int32 [1, 1, rows]; and all, marked ones first, [1, 1, rows, columns]."""
    marked = tiles[None, None].int()
    return marked.sum(-1, dtype=torch.int32), marked.argsort(dim=-1, descending=True, stable=True).int()
