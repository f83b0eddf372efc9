"""Documents of a packed batch, of so many queries and keys each, whose queries see as many keys as is drawn."""

from __future__ import annotations

import torch

from speculators.layers.documents import Documents, DocumentSpan


def documents_of(*sizes: tuple[int, int], seed: int = 0, is_ordered: bool = True) -> Documents:
    """`is_ordered`: later queries of a document see no less than earlier ones."""
    generator = torch.Generator().manual_seed(seed)
    spans, queries, keys = [], 0, 0
    for count, length in sizes:
        visible = torch.randint(1, length + 1, (count,), generator=generator)
        visible = visible.sort().values if is_ordered else visible
        spans.append(DocumentSpan(slice(queries, queries + count), slice(keys, keys + length), visible))
        queries, keys = queries + count, keys + length
    return Documents(tuple(spans))
