"""Proposals as trees: after the newest token of a text several continuations that share their beginnings.

A pass reads the newest token and all nodes at once. A node stands at the position of its depth, whatever its place in
the cache, and sees the text, its ancestors and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from speculators.recipe.tree_paths import unled


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
class StaticShape:
    """A tree whose nodes are chosen beforehand (Medusa, arXiv:2401.10774): `paths` leads to each of them.

    A path has a rank for every level, 0 for the likeliest token after the node above, 1 for the next. Whatever leads to
    a node is a node too, and none is named twice; else ValueError.
    """

    paths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if problem := path_problem(self.paths):
            raise ValueError(problem)

    @property
    def depth(self) -> int:
        """Levels."""
        return max(map(len, self.paths))

    @property
    def nodes(self) -> int:
        """Nodes that the verifier reads."""
        return len(self.paths)

    @property
    def drafted(self) -> int:
        """Nodes that the draft itself reads while the tree grows: those with nodes below."""
        return sum(map(len, self.continued))

    @cached_property
    def levels(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The paths to the nodes of each level, in order."""
        return tuple(tuple(sorted(one for one in self.paths if len(one) == size + 1)) for size in range(self.depth))

    @cached_property
    def continued(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Of each level those with nodes below."""
        above = {path[:-1] for path in self.paths}
        return tuple(tuple(path for path in level if path in above) for level in self.levels)


AnyShape = TreeShape | StaticShape


def path_problem(paths: Sequence[Sequence[int]]) -> str | None:
    """What keeps these paths from being a tree, in words; None for nothing."""
    if not paths:
        return "there is no path"
    if not all(paths):
        return "a path is empty"
    if numbers := unled(paths):
        path = list(paths[numbers[0]])
        return f"{path} is there and {path[:-1]}, which leads to it, is not"
    return None if len(set(map(tuple, paths))) == len(paths) else "a path is there twice"


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
