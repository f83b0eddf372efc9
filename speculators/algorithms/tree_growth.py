"""Trees of proposals while they grow: which nodes a draft continues, and which of all are verified.

EAGLE-2's dynamic trees (arXiv:2406.16858): every level's best nodes by the probability of their whole path are
continued by their likeliest tokens; of all nodes that were ever met the best are kept. A child is never likelier than
its parent, so what is kept hangs together. Static trees (Medusa's, arXiv:2401.10774) have the same nodes every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from speculators.errors import UsageError
from speculators.layers.trees import AnyShape, StaticShape, Tree, TreeShape


@dataclass(frozen=True)
class Frontier:
    """The nodes of a level that are continued, w for each of B texts, as the next `grow` wants their logits.

    `tokens` int64 [B, w] are draft ids, `parents` int64 [B, w] the places of their parents in the frontier before.
    """

    tokens: torch.Tensor
    parents: torch.Tensor


class Growth(Protocol):
    """The trees of B texts while they grow."""

    def grow(self, logits: torch.Tensor) -> Frontier:
        """Add a level: `logits` [B, w, Vd] are the draft's after each node of the last frontier.

        First they are those after the newest token, [B, 1, Vd].
        """

    def harvest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft ids and parents of the nodes that are kept, int64 [B, N] each, as `Tree` orders them."""


def growing(shape: AnyShape) -> Growth:
    """Trees of a shape, before their first level."""
    return StaticGrowth(shape) if isinstance(shape, StaticShape) else DynamicGrowth(shape)


class DynamicGrowth:
    """Trees of the nodes with the likeliest paths."""

    def __init__(self, shape: TreeShape) -> None:
        self._shape = shape
        self._tokens: list[torch.Tensor] = []
        self._parents: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._met = 0
        self._frontier: tuple[torch.Tensor, torch.Tensor] | None = None
        """Of its nodes [B, w] the places among all nodes met, and the logarithms of their paths' probabilities."""

    def grow(self, logits: torch.Tensor) -> Frontier:
        """The new level's best nodes, best first."""
        width = min(self._shape.width, logits.shape[-1])
        chances, ids = logits.float().log_softmax(-1).topk(width, dim=-1)  # [B, w, width]
        if self._frontier is None:
            parents = torch.full_like(ids, -1)
        else:
            numbers, before = self._frontier
            chances = chances + before[..., None]
            parents = numbers[..., None].expand_as(ids)
        tokens, scores, parents = ids.flatten(1), chances.flatten(1), parents.flatten(1)
        self._tokens.append(tokens)
        self._scores.append(scores)
        self._parents.append(parents)
        best, places = scores.topk(min(self._shape.width, scores.shape[1]), dim=-1)
        first, self._met = self._met, self._met + tokens.shape[1]
        self._frontier = places + first, best
        return Frontier(tokens.gather(1, places), places // width)

    def harvest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest nodes of all."""
        tokens, parents, scores = (torch.cat(one, 1) for one in (self._tokens, self._parents, self._scores))
        # Stable: of equal ones the parent, which was met first, comes first.
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        kept = order[:, : self._shape.nodes].sort(dim=-1).values
        places = torch.full_like(tokens, -1).scatter(
            1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        )
        above = parents.gather(1, kept)
        return tokens.gather(1, kept), torch.where(above < 0, above, places.gather(1, above.clamp(min=0)))


class StaticGrowth:
    """Trees of the nodes that the shape names."""

    def __init__(self, shape: StaticShape) -> None:
        self._shape = shape
        self._tokens: list[torch.Tensor] = []

    def grow(self, logits: torch.Tensor) -> Frontier:
        """Of the new level the nodes with nodes below.

        Raises UsageError where the draft has fewer tokens than a path asks for.
        """
        level = len(self._tokens)
        paths, below = self._shape.levels[level], self._shape.continued[level]
        above = self._shape.continued[level - 1] if level else ((),)
        most = max(path[-1] for path in paths) + 1
        if most > logits.shape[-1]:
            raise UsageError(f"the tree asks for {most} tokens after one node, and the draft has {logits.shape[-1]}")
        likeliest = logits.topk(most, dim=-1).indices  # [B, w, most]
        at = torch.tensor([above.index(path[:-1]) for path in paths], device=logits.device)
        ranks = torch.tensor([path[-1] for path in paths], device=logits.device)
        tokens = likeliest[:, at, ranks]
        self._tokens.append(tokens)
        places = torch.tensor([paths.index(path) for path in below], dtype=torch.int64, device=logits.device)
        return Frontier(tokens[:, places], at[places].expand(len(logits), -1))

    def harvest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All nodes, level by level."""
        order = [path for level in self._shape.levels for path in level]
        number = {path: place for place, path in enumerate(order)} | {(): -1}
        tokens = torch.cat(self._tokens, 1)
        parents = torch.tensor([number[path[:-1]] for path in order], device=tokens.device)
        return tokens, parents.expand(len(tokens), -1)


def as_tree(tokens: torch.Tensor, parents: torch.Tensor, target_ids: torch.Tensor | None) -> Tree:
    """A harvest in the verifier's ids."""
    return Tree(tokens if target_ids is None else target_ids[tokens], parents)
