"""Documents packed into training batches of a fixed number of tokens, nearly without waste.

Bin packing is best-fit decreasing inside windows of shuffled documents: sorting a window lets short documents fill the
gaps of long ones, the windows keep the batches mixed, and the emptiest batch of a window is opened again in the next.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence

WINDOW = 64
"""Batches' worth of documents that are packed together."""


def pack(lengths: Sequence[int], budget: int, *, seed: int = 0, epoch: int = 0) -> list[list[int]]:
    """Divide documents into batches of at most `budget` tokens; every document is in exactly one.

    `lengths` are the documents' tokens; the batches hold their numbers. A document longer than the budget has a batch
    of its own. The same seed and epoch give the same batches in the same order, on every machine.
    Raises ValueError when the budget is not positive.
    """
    if budget <= 0:
        raise ValueError(f"a batch of {budget} tokens holds nothing")
    chance = random.Random(f"{seed}/{epoch}")  # noqa: S311  not for secrets
    order = list(range(len(lengths)))
    chance.shuffle(order)
    batches: list[list[int]] = []
    window: list[int] = []
    gathered = 0
    for number in order:
        window.append(number)
        gathered += lengths[number]
        if gathered >= WINDOW * budget:
            packed = _best_fit_decreasing(window, lengths, budget)
            window = min(packed, key=lambda batch: sum(lengths[number] for number in batch))
            packed.remove(window)
            gathered = sum(lengths[number] for number in window)
            batches += packed
    batches += _best_fit_decreasing(window, lengths, budget)
    for batch in batches:
        chance.shuffle(batch)
    chance.shuffle(batches)
    return batches


def fill(batches: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """The share of the batches' tokens that are used, from 0 to 1; 1 is no waste."""
    used = sum(lengths[number] for batch in batches for number in batch)
    return used / (len(batches) * budget) if batches else 1.0


def _best_fit_decreasing(documents: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, each into the batch where it leaves the least room; a new batch when it fits nowhere."""
    batches: list[list[int]] = []
    rooms: list[int] = []  # distinct free tokens of open batches, ascending
    by_room: dict[int, list[list[int]]] = {}
    for number in sorted(documents, key=lambda number: -lengths[number]):
        length = lengths[number]
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            batch = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        else:
            room, batch = max(budget, length), []
            batches.append(batch)
        batch.append(number)
        left = room - length
        if left:
            if left not in by_room:
                bisect.insort(rooms, left)
            by_room.setdefault(left, []).append(batch)
    return batches
