"""EAGLE-2's dynamic trees (arXiv:2406.16858): which nodes a draft continues, and which of all are verified.

Every level's best nodes by the probability of their whole path are continued by their likeliest tokens; of all nodes
that were ever met the best are kept. A child is never likelier than its parent, so what is kept hangs together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from speculators.layers.trees import Tree, TreeShape


@dataclass(frozen=True)
class Frontier:
    """The nodes of a level that are continued, w for each of B texts, best first.

    `tokens` int64 [B, w] are draft ids, `parents` int64 [B, w] the places of their parents in the frontier before,
    `numbers` their places among all nodes met, `scores` [B, w] the logarithms of their paths' probabilities.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    numbers: torch.Tensor
    scores: torch.Tensor


class Growth:
    """The trees of B texts while they grow."""

    def __init__(self, shape: TreeShape) -> None:
        self._shape = shape
        self._tokens: list[torch.Tensor] = []
        self._parents: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._met = 0

    def grow(self, logits: torch.Tensor, frontier: Frontier | None) -> Frontier:
        """Continue the nodes of `frontier`, whose draft logits [B, w, Vd] are known; None: the newest token [B, 1, Vd].

        Returns the new level's best nodes.
        """
        width = min(self._shape.width, logits.shape[-1])
        chances, ids = logits.float().log_softmax(-1).topk(width, dim=-1)  # [B, w, width]
        if frontier is None:
            parents = torch.full_like(ids, -1)
        else:
            chances = chances + frontier.scores[..., None]
            parents = frontier.numbers[..., None].expand_as(ids)
        tokens, scores, parents = ids.flatten(1), chances.flatten(1), parents.flatten(1)
        self._tokens.append(tokens)
        self._scores.append(scores)
        self._parents.append(parents)
        best, places = scores.topk(min(self._shape.width, scores.shape[1]), dim=-1)
        first, self._met = self._met, self._met + tokens.shape[1]
        return Frontier(tokens.gather(1, places), places // width, places + first, best)

    def harvest(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft ids and parents of the nodes that are kept, int64 [B, N] each, as `Tree` orders them."""
        tokens, parents, scores = (torch.cat(one, 1) for one in (self._tokens, self._parents, self._scores))
        # Stable: of equal ones the parent, which was met first, comes first.
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        kept = order[:, : self._shape.nodes].sort(dim=-1).values
        places = torch.full_like(tokens, -1).scatter(
            1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        )
        above = parents.gather(1, kept)
        return tokens.gather(1, kept), torch.where(above < 0, above, places.gather(1, above.clamp(min=0)))


def as_tree(tokens: torch.Tensor, parents: torch.Tensor, target_ids: torch.Tensor | None) -> Tree:
    """A harvest in the verifier's ids."""
    return Tree(tokens if target_ids is None else target_ids[tokens], parents)
