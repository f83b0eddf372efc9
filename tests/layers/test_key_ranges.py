"""Tiles found from the ends of ranges are those found from the whole mask."""

from __future__ import annotations

import pytest
import torch
from packed_documents import documents_of
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from speculators.layers.block_attention import Window
from speculators.layers.key_ranges import TILE, KeyRanges, prefix_mask

CPU = torch.device("cpu")


PACKED = {
    "one document": [(300, 400)],
    "whole tiles": [(128, 128), (128, 256)],
    "a tile of many documents": [(10, 20), (1, 30), (40, 40), (3, 400), (90, 91)],
    "fewer than a tile": [(5, 7), (1, 3)],
}


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("window", [None, *(Window(size, is_causal=size % 2 == 0) for size in (1, 2, 100, 999))])
@pytest.mark.parametrize("sizes", PACKED.values(), ids=PACKED)
def test_tiles_are_those_of_the_whole_mask(sizes, window, width, is_ordered):
    documents, keys = documents_of(*sizes, is_ordered=is_ordered), sum(length for _, length in sizes) + 5
    seen = []
    for span in documents:
        for visible in span.visible.tolist():
            for slot in range(width):
                places = torch.arange(keys) - span.keys.start
                row = (places >= 0) & (places < visible)
                seen.append(row if window is None else row & window.sees(torch.tensor(visible + slot), places))
    wanted = torch.stack(seen)
    found = KeyRanges.of(documents, CPU, width, window).block_mask(keys)
    assert torch.equal(create_mask(found.mask_mod, None, None, *wanted.shape, device="cpu")[0, 0], wanted)
    dense = create_block_mask(lambda b, h, q, k: wanted[q, k], None, None, *wanted.shape, device="cpu")
    assert found.shape == dense.shape
    for name in ("kv", "q", "full_kv", "full_q"):
        assert tiles(found, name) == tiles(dense, name)


def tiles(mask: BlockMask, name: str) -> set[tuple[int, int]]:
    """Which of them are listed."""
    counts, indices = getattr(mask, f"{name}_num_blocks")[0, 0], getattr(mask, f"{name}_indices")[0, 0]
    return {(row, place) for row, count in enumerate(counts) for place in indices[row, :count].tolist()}


def test_a_mask_is_made_once_for_those_who_ask_alike():
    documents = documents_of((150, 200))
    window = Window(20, is_causal=True)
    first = prefix_mask(documents, 200, CPU, 4, window)
    assert prefix_mask(documents, 200, CPU, 4, Window(20, is_causal=True)) is first
    assert prefix_mask(documents, 200, CPU, 4) is not first
    assert prefix_mask(documents, 2 * TILE, CPU) is not prefix_mask(documents, 200, CPU)
