"""A key/value cache whose rows ("slots") hold sequences of different lengths, so that a batch needs no padding.

Each slot belongs to one running sequence. New keys and values go to the end of their own slot, a rejected proposal is
forgotten by cropping, a finished sequence's slot is used again by the next one. Nothing is ever copied or allocated
while decoding, except when the slots of a batch do not lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """Where the next `width` positions of some slots go; worked out once and used by every layer."""

    rows: torch.Tensor
    """[B] int64, slots, on the cache's device."""
    starts: tuple[int, ...]
    """Length of each slot before the write."""
    width: int
    """New positions in every slot."""
    first: int | None
    """First slot when the slots are first, first + 1, ...: reading is then a view."""
    positions: torch.Tensor
    """[B, width] int64 absolute positions, on the cache's device."""

    @property
    def end(self) -> int:
        """Positions that must be looked at: the longest slot, new positions included."""
        return max(self.starts) + self.width

    @property
    def level(self) -> bool:
        """Whether all slots have the same length."""
        return all(start == self.starts[0] for start in self.starts)


def whole(rows: int, q: int, device: torch.device) -> Place:
    """The place of `rows` whole sequences of `q` positions each, outside any cache."""
    positions = torch.arange(q, device=device).expand(rows, q)
    return Place(torch.arange(rows, device=device), (0,) * rows, q, 0, positions)


class SlotCache:
    """Keys and values of `layers` layers for `slots` sequences of at most `capacity` positions each.

    `lengths` is int64 [slots] on the CPU: positions in use. Memory is layers * slots * kv_heads * capacity *
    (head_dim + value_dim) elements; the operating system hands out CPU pages only when they are first written.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        value_dim: int | None = None,
        keys_by_dimension: bool = False,
    ) -> None:
        """`keys_by_dimension` lays keys out as [d, capacity]: plain products over them then run at memory speed."""
        self.layers, self.slots, self.capacity = layers, slots, capacity
        self.dtype, self.device = dtype, torch.device(device)
        keys = (slots, kv_heads, head_dim, capacity) if keys_by_dimension else (slots, kv_heads, capacity, head_dim)
        values = (slots, kv_heads, capacity, value_dim or head_dim)
        # Zeros, not empty: a masked position still takes part in 0 * value, which must not be NaN.
        self._keys = [torch.zeros(keys, dtype=dtype, device=device) for _ in range(layers)]
        self._values = [torch.zeros(values, dtype=dtype, device=device) for _ in range(layers)]
        if keys_by_dimension:
            self._keys = [store.transpose(2, 3) for store in self._keys]
        self.lengths = torch.zeros(slots, dtype=torch.int64)

    def place(self, rows: torch.Tensor, q: int) -> Place:
        """Where the next `q` positions of slots `rows` [B] int64 go.

        Raises ValueError when a slot would grow beyond the capacity.
        """
        numbers = rows.tolist()
        starts = self.lengths[rows.cpu()].tolist() if len(numbers) > 1 else [int(self.lengths[numbers[0]])]
        if max(starts) + q > self.capacity:
            raise ValueError(
                f"a slot would hold {max(starts) + q} positions, more than the cache's capacity of {self.capacity}"
            )
        side_by_side = all(number == numbers[0] + i for i, number in enumerate(numbers))
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(q, device=self.device)
        return Place(rows.to(self.device), tuple(starts), q, numbers[0] if side_by_side else None, positions)

    def write(
        self, layer: int, rows: torch.Tensor | Place, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put k and v [B, kv, q, d] at the end of each slot of `rows` and return all keys and values so far.

        The lengths do not change until `advance`. What comes back is [B, kv, L, d] with L the longest slot's length
        plus q; positions beyond a row's own end are finite and meaningless: `mask` hides them.
        """
        place = rows if isinstance(rows, Place) else self.place(rows, k.shape[2])
        return _put(self._keys[layer], place, k), _put(self._values[layer], place, v)

    def advance(self, rows: torch.Tensor, q: int) -> None:
        """Count the `q` positions just written to slots `rows` as part of them."""
        self.lengths[rows.cpu()] += q

    def crop(self, rows: torch.Tensor, lengths: torch.Tensor | Sequence[int] | int) -> None:
        """Forget everything in slots `rows` beyond `lengths` ([B] or one number); 0 empties a slot."""
        kept = torch.as_tensor(lengths, dtype=torch.int64)
        self.lengths[rows.cpu()] = torch.minimum(self.lengths[rows.cpu()], kept)

    def move(self, source: int, destination: int) -> None:
        """Copy the sequence of one slot over another, so that running slots can be kept side by side."""
        length = int(self.lengths[source])
        for store in (*self._keys, *self._values):
            store[destination, :, :length] = store[source, :, :length]
        self.lengths[destination] = length

    def mask(self, rows: torch.Tensor | Place, q: int) -> torch.Tensor | None:
        """Which of the positions returned by `write` a new position may see: bool [B, 1, q, L], True is seen.

        None means that no mask is needed: every new position sees all before it and itself, and the q new ones are
        either one per row with rows of equal length, or the whole of their sequences (plain causal attention).
        """
        place = rows if isinstance(rows, Place) else self.place(rows, q)
        if place.level and (q == 1 or place.starts[0] == 0):
            return None
        seen = torch.arange(place.end, device=self.device) <= place.positions[:, :, None]  # [B, q, L]
        return seen[:, None]


def _put(store: torch.Tensor, place: Place, new: torch.Tensor) -> torch.Tensor:
    """Write [B, kv, q, d] into a store [slots, kv, capacity, d]; return the rows up to the longest one's end."""
    first, count = place.first, len(place.starts)
    if first is not None and place.level:
        store[first : first + count, :, place.starts[0] : place.end] = new
    else:
        store[place.rows[:, None], :, place.positions] = new.transpose(1, 2).to(store.dtype)
    if first is not None:
        return store[first : first + count, :, : place.end]
    return store[:, :, : place.end].index_select(0, place.rows)
