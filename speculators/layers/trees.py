"""Proposals as trees: after the newest token of a text several continuations that share their beginnings.

A pass reads the newest token and all nodes at once. A node stands at the position of its depth, whatever its place in
the cache, and sees the text, its ancestors and itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class TreeShape:
    """How a tree grows: `depth` levels, of each of which the `width` best nodes are continued, each by `width` tokens.

    The `nodes` best of all are kept. "Best" is by the draft's probability of the whole path (EAGLE-2,
    arXiv:2406.16858).
    """

    depth: int
    width: int
    nodes: int

    @property
    def drafted(self) -> int:
        """Nodes that the draft itself reads while the tree grows."""
        return (self.depth - 1) * self.width


@dataclass(frozen=True)
class Tree:
    """One tree of N nodes for each of B texts; parents stand before their children, siblings likeliest first.

    `tokens` int64 [B, N] are verifier ids, `parents` int64 [B, N] the number of each node's parent, -1 where it follows
    the newest token itself.
    """

    tokens: torch.Tensor
    parents: torch.Tensor

    @cached_property
    def seen(self) -> torch.Tensor:
        """Which of the newest token and the nodes each of them sees: bool [B, N+1, N+1]."""
        batch, nodes = self.parents.shape
        device = self.parents.device
        found = torch.eye(nodes + 1, dtype=torch.bool, device=device).repeat(batch, 1, 1)
        rows = torch.arange(batch, device=device)
        for node in range(nodes):
            found[:, node + 1] |= found[rows, self.parents[:, node] + 1]
        return found

    @cached_property
    def depths(self) -> torch.Tensor:
        """How far from the newest token each of it and the nodes is: int64 [B, N+1], 0 first."""
        return self.seen.sum(-1) - 1


def tree_mask(seen: torch.Tensor, starts: torch.Tensor, end: int) -> torch.Tensor:
    """The mask over a cache: bool [B, 1, q, end], True is seen.

    The new positions stand in each row's cache from `starts` int64 [B] on. They see everything before it and, of the
    m positions from there, what `seen` [B, q, m] says.
    """
    width = seen.shape[-1]
    places = torch.arange(end, device=seen.device) - starts[:, None]  # [B, end], relative to the start
    inside = (places >= 0) & (places < width)
    index = places.clamp(0, max(width - 1, 0))[:, None].expand(-1, seen.shape[1], -1)
    return (((places < 0)[:, None]) | (seen.gather(-1, index) & inside[:, None]))[:, None]
