"""Jacobi passes over blocks: all slots corrected at once from the tokens that the pass before chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from speculators.algorithms.xpress.network import Refiner

Likeliest = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Verifier ids int64 [n, B] from states [n, B, h] and u [n, B, r]; without u, from the head alone."""


def free_running(
    refiner: Refiner,
    states: torch.Tensor,
    anchors: torch.Tensor,
    before_anchor: torch.Tensor,
    likeliest: Likeliest,
    passes: int,
) -> Iterator[torch.Tensor]:
    """u [n, B, r] of each of `passes` passes, beginning with what the head alone chooses.

    `anchors` and `before_anchor` int64 [n]. No gradient flows from a pass into the one before.
    """
    summary = refiner.summary(states)
    chosen = likeliest(states, None)
    for number in range(passes):
        before = torch.cat([before_anchor[:, None], anchors[:, None], chosen[:, 1:-1]], 1)
        u = refiner(summary, before)
        yield u
        if number < passes - 1:
            chosen = likeliest(states, u.detach())
