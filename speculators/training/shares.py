"""Which documents of a batch each process takes: about the same work for everyone."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.data.tokens import TokenDataset
from speculators.training.ranks import Ranks


def share(tokens: TokenDataset, documents: Sequence[int], ranks: Ranks) -> list[int]:
    """This process's documents of a batch, in the batch's order; there may be none."""
    if ranks.count == 1:
        return list(documents)
    spans = map(tokens.span, documents)
    costs = [(int(tokens.loss_mask[start:end].sum()), end - start) for start, end in spans]
    return [documents[place] for place in balanced(costs, ranks.count)[ranks.number]]


def balanced(costs: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """Places of `costs`, divided into `count` lists; the most expensive goes first, always to who has least.

    A cost is a document's assistant tokens, whose chains are nearly all of the work, and then all of its tokens.
    """
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, 0)] * count
    for place in sorted(range(len(costs)), key=lambda place: costs[place], reverse=True):
        least = min(range(count), key=lambda number: loads[number])
        parts[least].append(place)
        loads[least] = loads[least][0] + costs[place][0], loads[least][1] + costs[place][1]
    return [sorted(part) for part in parts]
