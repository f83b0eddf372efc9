"""A language model's head in packed blocks of its vocabulary, whose argmax never holds all logits.

One product over the whole vocabulary writes its logits to memory and reads them again for the argmax; a block's are
still in the processor's caches: a sixth faster on many rows. Where the logits themselves are wanted it is a tenth
slower, since they are put side by side afterwards.
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.layers.packed_linear import PackedLinear

BLOCK_ROWS = 2048
"""Vocabulary a block: the fastest of the sizes that were measured."""


class PackedHead(nn.Module):
    """`nn.Linear` for inference, as `PackedLinear`, split by its outputs."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        *,
        cast_back: bool,
    ) -> None:
        """`weight` [V, h] is not kept; `dtype` and `cast_back` are those of `PackedLinear`."""
        super().__init__()
        blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, len(weight), BLOCK_ROWS)]
        self.blocks = nn.ModuleList(
            PackedLinear(weight[block], None if bias is None else bias[block], dtype, cast_back=cast_back)
            for block in blocks
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([block(x) for block in self.blocks], dim=-1)

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """The output that is largest for each row of `x` [n, h], the first of equals: int64 [n]."""
        found: tuple[torch.Tensor, torch.Tensor] | None = None
        for number, block in enumerate(self.blocks):
            # The same as argmax, which torch computes five times slower than max in bfloat16.
            values, places = block(x).max(dim=-1)
            places += number * BLOCK_ROWS
            if found is None:
                found = values, places
            else:
                found = torch.maximum(found[0], values), torch.where(values > found[0], places, found[1])
        assert found is not None  # noqa: S101  a head has outputs
        return found[1]
