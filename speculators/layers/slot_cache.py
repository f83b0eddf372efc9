"""A key/value cache whose rows ("slots") hold sequences of different lengths, so that a batch needs no padding.

Each slot belongs to one running sequence. New keys and values go to the end of their own slot, a rejected proposal is
forgotten by cropping, a finished sequence's slot is used again by the next one. Nothing is ever copied or allocated
while decoding, except when the slots of a batch do not lie side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GROWTH = 64
"""Positions by which what is held grows, when all of it is read at once."""
SPARE = 0.7
"""What is held shrinks when so small a share of it is needed."""


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
    end: int
    """Positions that are read: at least the longest slot's, new ones included."""
    turns: torch.Tensor | None = None
    """[B, width] int64 rotary positions where they differ from `positions` (`SlotCache.turn`)."""

    @property
    def rotary(self) -> torch.Tensor:
        """[B, width] int64 rotary positions."""
        return self.positions if self.turns is None else self.turns

    @property
    def level(self) -> bool:
        """Whether all slots have the same length."""
        return all(start == self.starts[0] for start in self.starts)


def whole(rows: int, q: int, device: torch.device) -> Place:
    """The place of `rows` whole sequences of `q` positions each, outside any cache."""
    positions = torch.arange(q, device=device).expand(rows, q)
    return Place(torch.arange(rows, device=device), (0,) * rows, q, 0, positions, q)


class SlotCache:
    """Keys and values of `layers` layers for `slots` sequences of at most `capacity` positions each.

    `kv_heads`, `head_dim` and `value_dim` (None: as `head_dim`) are one number, or one for each layer.

    `lengths` is int64 [slots] on the CPU: positions in use. Memory is layers * slots * kv_heads * capacity *
    (head_dim + value_dim) elements; the operating system hands out CPU pages only when they are first written.

    `for_products` suits attention by plain batched products: keys lie as [d, positions], and what is read is always
    all that is held, so that the operands are contiguous and nothing is copied before multiplying. What is held follows
    the longest slot, in steps of `GROWTH` positions; a slot that is no longer used must be cropped to 0.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        kv_heads: int | Sequence[int],
        head_dim: int | Sequence[int],
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        value_dim: int | Sequence[int] | None = None,
        for_products: bool = False,
    ) -> None:
        self.layers, self.slots, self.capacity = layers, slots, capacity
        self.dtype, self.device = dtype, torch.device(device)
        self.lengths = torch.zeros(slots, dtype=torch.int64)
        self._turns: torch.Tensor | None = None  # [slots, capacity] rotary positions, once a slot has its own
        self._for_products, self._held = for_products, GROWTH if for_products else capacity
        heads, sizes = _each(kv_heads, layers), _each(head_dim, layers)
        values = sizes if value_dim is None else _each(value_dim, layers)
        self._keys = [
            _store((slots, count, self._held, size), dtype, self.device, for_products)
            for count, size in zip(heads, sizes, strict=True)
        ]
        self._values = [
            _store((slots, count, self._held, size), dtype, self.device)
            for count, size in zip(heads, values, strict=True)
        ]

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
        end = max(starts) + q
        if self._for_products:
            self._hold(max(end, int(self.lengths.max())))
            end = self._held
        positions = torch.tensor(starts, device=self.device)[:, None] + torch.arange(q, device=self.device)
        first, turns = numbers[0] if side_by_side else None, None
        if self._turns is not None:
            turns = self._turns[rows.to(self.device)[:, None], positions]
        return Place(rows.to(self.device), tuple(starts), q, first, positions, end, turns)

    def turn(self, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Give slots `rows` [B] rotary positions of their own: `positions` [B, n] at their first n places.

        Later places go on from the last of these, until the slot is emptied. A text with images has such positions.
        """
        if self._turns is None:
            self._turns = torch.arange(self.capacity, device=self.device).repeat(self.slots, 1)
        first = positions.to(self.device)[:, : self.capacity]
        beyond = torch.arange(1, self.capacity - first.shape[1] + 1, device=self.device)
        self._turns[rows.to(self.device)] = torch.cat([first, first[:, -1:] + beyond], 1)

    def write(
        self, layer: int, rows: torch.Tensor | Place, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put k and v [B, kv, q, d] at the end of each slot of `rows` and return all keys and values so far.

        The lengths do not change until `advance`. What comes back is [B, kv, L, d] with L the longest slot's length
        plus q (`Place.end`); positions beyond a row's own end are finite and meaningless: `mask` hides them.
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
        if self._turns is not None:
            emptied = rows.cpu()[self.lengths[rows.cpu()] == 0].to(self.device)
            self._turns[emptied] = torch.arange(self.capacity, device=self.device)

    def keep(self, row: int, start: int, kept: Sequence[int]) -> None:
        """Of what a slot holds from `start` on keep the positions `start + kept[i]`, ascending, put side by side."""
        count = len(kept)
        if list(kept) != list(range(count)):
            places = torch.tensor(kept, device=self.device) + start
            for store in (*self._keys, *self._values):
                store[row, :, start : start + count] = store[row].index_select(1, places)
        self.lengths[row] = start + count

    def move(self, source: int, destination: int) -> None:
        """Put the sequence of one slot in another's place, so that running slots can be kept side by side."""
        length = int(self.lengths[source])
        for store in (*self._keys, *self._values):
            store[destination, :, :length] = store[source, :, :length]
        if self._turns is not None:
            self._turns[destination] = self._turns[source]
            self._turns[source] = torch.arange(self.capacity, device=self.device)
        self.lengths[destination] = length
        self.lengths[source] = 0

    def _hold(self, end: int) -> None:
        """Hold at least `end` positions of every slot, and not many more."""
        needed = -(-end // GROWTH) * GROWTH
        if self._held * SPARE <= needed <= self._held:
            return
        self._held = needed
        for stores, transposed in ((self._keys, True), (self._values, False)):
            for layer, store in enumerate(stores):
                shape = (*store.shape[:2], needed, store.shape[3])
                stores[layer] = _store(shape, self.dtype, self.device, transposed)
                kept = min(needed, store.shape[2])
                stores[layer][:, :, :kept] = store[:, :, :kept]

    def mask(self, rows: torch.Tensor | Place, q: int) -> torch.Tensor | None:
        """Which of the positions returned by `write` a new position may see: bool [B, 1, q, L], True is seen.

        None means that no mask is needed: every new position sees all before it and itself, and the q new ones are
        either one per row with rows of equal length, or the whole of their sequences (plain causal attention).
        """
        place = rows if isinstance(rows, Place) else self.place(rows, q)
        exact = place.end == place.starts[0] + q
        if place.level and (place.starts[0] == 0 or (q == 1 and exact)):
            return None
        seen = torch.arange(place.end, device=self.device) <= place.positions[:, :, None]  # [B, q, L]
        return seen[:, None]


def _each(value: int | Sequence[int], layers: int) -> Sequence[int]:
    return [value] * layers if isinstance(value, int) else value


def _store(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, transposed: bool = False) -> torch.Tensor:
    """A store [slots, kv, positions, d], in memory [slots, kv, d, positions] if transposed.

    Zeros, not empty: a masked position still takes part in 0 * value, which must not be NaN.
    """
    slots, kv, positions, size = shape
    if transposed:
        return torch.zeros(slots, kv, size, positions, dtype=dtype, device=device).transpose(2, 3)
    return torch.zeros(shape, dtype=dtype, device=device)


def _put(store: torch.Tensor, place: Place, new: torch.Tensor) -> torch.Tensor:
    """Write [B, kv, q, d] into a store [slots, kv, capacity, d]; return the rows up to the longest one's end."""
    first, count = place.first, len(place.starts)
    if first is not None and place.level:
        store[first : first + count, :, place.starts[0] : place.starts[0] + place.width] = new
    else:
        store[place.rows[:, None], :, place.positions] = new.transpose(1, 2).to(store.dtype)
    if first is not None:
        return store[first : first + count, :, : place.end]
    return store[:, :, : place.end].index_select(0, place.rows)
