"""From logits to tokens: temperature, top-k, top-p, and draws that depend on a request's own seed alone.

A draw is the inverse of the cumulative distribution at a uniform number. Every committed token uses up one number of
its request, so a seed gives the same text whatever else is in the batch, and, where proposals are greedy, with a draft
or without one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from speculators.decoding.request import Request

_NUCLEUS_GUESS = 1024
"""Candidates among which a nucleus is looked for before the whole vocabulary is sorted."""


class Uniforms:
    """A request's own stream of numbers in [0, 1), which may be looked at before they are used up."""

    def __init__(self, seed: int | str | None) -> None:
        self._random = random.Random(seed)  # noqa: S311  sampling text is not cryptography
        self._ahead: list[float] = []

    def peek(self, count: int) -> list[float]:
        """The next `count` numbers, left in the stream."""
        while len(self._ahead) < count:
            self._ahead.append(self._random.random())
        return self._ahead[:count]

    def drop(self, count: int) -> None:
        """Use up `count` numbers."""
        self.peek(count)
        del self._ahead[:count]

    def take(self, count: int) -> list[float]:
        """The next `count` numbers, used up."""
        taken = self.peek(count)
        del self._ahead[:count]
        return taken


def distributions(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """The distribution each request samples from: float32 [n, ..., V], for logits [n, ..., V].

    Temperature first, then top-k, then top-p on what top-k left, as vLLM and transformers do. Greedy requests get
    all their mass on the (first) most likely token.
    """
    scale = [1.0 if request.is_greedy else request.temperature for request in requests]
    shape = (len(requests),) + (1,) * (logits.dim() - 1)
    scores = logits.float() / torch.tensor(scale, device=logits.device).view(shape)
    probabilities = torch.softmax(scores, dim=-1)
    for row, request in enumerate(requests):
        if request.is_greedy:
            best = probabilities[row].argmax(dim=-1, keepdim=True)
            probabilities[row] = torch.zeros_like(probabilities[row]).scatter_(-1, best, 1.0)
        elif request.top_k is not None or request.top_p < 1:
            probabilities[row] = truncated(probabilities[row], request.top_k, request.top_p)
    return probabilities


def truncated(probabilities: torch.Tensor, top_k: int | None, top_p: float) -> torch.Tensor:
    """`probabilities` [..., V] kept to the `top_k` likeliest, then to the fewest whose mass reaches `top_p`; sums to 1.

    Among equals those that sort first stay; at least one token always does.
    """
    size = probabilities.shape[-1]
    count = min(top_k or size, size)
    if top_k is None and size > _NUCLEUS_GUESS:
        values, ids = probabilities.topk(_NUCLEUS_GUESS, dim=-1)
        if bool((values.sum(-1) < top_p).any()):  # a flat distribution: the nucleus is larger than the guess
            values, ids = probabilities.sort(dim=-1, descending=True)
        whole = probabilities.sum(-1, keepdim=True)
    else:
        values, ids = probabilities.topk(count, dim=-1)
        whole = values.sum(-1, keepdim=True)
    if top_p < 1:
        before = values.cumsum(-1) - values  # mass of the likelier tokens; the first is always kept
        values = values.masked_fill(before >= top_p * whole, 0.0)
    kept = torch.zeros_like(probabilities).scatter_(-1, ids, values)
    return kept / kept.sum(-1, keepdim=True)


def draw(weights: torch.Tensor, uniforms: float | Sequence[float] | Sequence[Sequence[float]]) -> torch.Tensor:
    """Token ids [...] drawn from non-negative `weights` [..., V] (of any sum) at `uniforms` [...], each in [0, 1).

    A token of weight zero is never drawn.
    """
    # Sums over a vocabulary need more digits than float32 has; Apple's GPUs have no others.
    precise = torch.float32 if weights.device.type == "mps" else torch.float64
    cumulative = weights.cumsum(-1, dtype=precise)
    targets = torch.tensor(uniforms, dtype=precise, device=weights.device)[..., None] * cumulative[..., -1:]
    ids = torch.searchsorted(cumulative, targets, right=True)
    return ids[..., 0].clamp_(max=weights.shape[-1] - 1)
