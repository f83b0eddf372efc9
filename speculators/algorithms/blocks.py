"""Which blocks of a batch are trained, and how much each of their slots weighs.

A block is a chain seen at once: the one rooted at t has its anchor at a = t + 1, the newest committed token, and its
step j is the prediction of x_{a+1+j}, made by slot j + 1 (by slot j where the anchor's own slot predicts too).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from speculators.algorithms.base import Noise
from speculators.algorithms.chains import Chains, some_chains


def random_anchors(chains: Chains, most: int, noise: Noise) -> Chains:
    """At most `most` chains of every document, chosen by its own generator; where there are fewer, all."""
    chosen = []
    for span, number in zip(chains.documents, torch.unique(chains.numbers).tolist(), strict=True):
        count = span.queries.stop - span.queries.start
        if count <= most:
            chosen.append(torch.arange(span.queries.start, span.queries.stop))
            continue
        order = torch.randperm(count, generator=noise(number))[:most]
        chosen.append(order.sort().values + span.queries.start)
    return some_chains(chains, torch.cat(chosen)) if chosen else chains


def reached(chances: Sequence[torch.Tensor], chains: Chains, alpha: float) -> list[torch.Tensor]:
    """D-PACE's weights, [A_j] for every step: w_j = sum over m >= j of the product of q_i over i <= m.

    `chances[j]` [A_j] is how likely the draft makes the right token at step j; each is mixed with certainty,
    q = (1 - alpha) * chance + alpha, so that no slot is forgotten. A block ends with its answer.
    """
    whole = chances[0].new_zeros(len(chains.roots), len(chances))
    for step, (alive, chance) in enumerate(zip(chains.alive, chances, strict=True)):
        whole[alive, step] = (1 - alpha) * chance + alpha
    reaching = whole.cumprod(1)
    following = reaching.flip(1).cumsum(1).flip(1)
    return [following[alive, step] for step, alive in enumerate(chains.alive)]
