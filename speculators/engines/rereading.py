"""A cache that remembers tokens only: for models whose attention cannot be replaced, and so cannot use ours.

Every pass reads the whole texts of its slots again, by the model's own code. Reading documents costs nothing more by
it, writing text does: use vLLM for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch


class TextCache:
    """Token ids of `slots` sequences of at most `capacity` tokens; `lengths` int64 [slots] says how many are there."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self.images: list[Sequence[Path]] = [()] * slots
        """The files of each slot's images."""
        self._ids = torch.zeros(slots, capacity, dtype=torch.int64)

    def append(self, rows: torch.Tensor, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put `input_ids` [B, q] at the ends of slots `rows` [B] and advance these by q.

        Gives the whole texts [B, L], padded on the right, and the places [B, q] of the new tokens in them. Raises
        ValueError when a slot would grow beyond the capacity.
        """
        places = self.lengths[rows][:, None] + torch.arange(input_ids.shape[1])
        longest = int(places.max()) + 1
        if longest > self.capacity:
            raise ValueError(
                f"a slot would hold {longest} positions, more than the cache's capacity of {self.capacity}"
            )
        self._ids[rows[:, None], places] = input_ids.cpu()
        self.lengths[rows] += input_ids.shape[1]
        return self._ids[rows, :longest], places

    def crop(self, rows: torch.Tensor, lengths: torch.Tensor | Sequence[int] | int) -> None:
        """Forget everything in slots `rows` beyond `lengths` ([B] or one number); 0 empties a slot."""
        self.lengths[rows] = torch.minimum(self.lengths[rows], torch.as_tensor(lengths, dtype=torch.int64))
        for row in rows.tolist():
            if not self.lengths[row]:
                self.images[row] = ()

    def move(self, source: int, destination: int) -> None:
        """Put the sequence of one slot in another's place."""
        self._ids[destination] = self._ids[source]
        self.lengths[destination] = self.lengths[source]
        self.lengths[source] = 0
        self.images[destination], self.images[source] = self.images[source], ()
