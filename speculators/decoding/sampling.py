"""From logits to tokens: temperature, top-k, top-p, and draws that depend on a request's own seed alone.

A draw is the inverse of the cumulative distribution at a uniform number. Every committed token uses up one number of
its request, so a seed gives the same text whatever else is in the batch, and, where proposals are greedy, with a draft
or without one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch.nn import functional

from speculators.decoding.request import Request

_NUCLEUS_GUESS = 1024
"""Candidates among which a nucleus is looked for before the whole vocabulary is sorted."""
_DRAWS_OF_A_NUCLEUS = 4
"""Times a token is drawn from the whole vocabulary, in the hope that it lies in the nucleus."""
_BLOCK = 128
"""Tokens whose weights are first summed together: only one block's cumulative sum is ever taken."""


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


def choose(logits: torch.Tensor, requests: Sequence[Request], uniforms: Sequence[Sequence[float]]) -> torch.Tensor:
    """Token ids [n, w] from `distributions` of `logits` [n, w, V], one uniform number each; no request is greedy.

    A nucleus (top-p) is not built: a token is drawn from all, looked at, and drawn again while it lies outside, with
    numbers that follow from the first. That takes a tenth of the time of sorting a vocabulary.
    """
    scale = torch.tensor([request.temperature for request in requests], device=logits.device)
    flat = torch.softmax(logits.float() / scale[:, None, None], dim=-1).flatten(0, 1)  # [n * w, V]
    each = [request for request in requests for _ in range(logits.shape[1])]
    numbers = [number for row in uniforms for number in row]
    for row, request in enumerate(each):
        if request.top_k is not None:  # a few tokens: the distribution itself is quickly made
            flat[row] = truncated(flat[row], request.top_k, request.top_p)
    ids = draw(flat, numbers)
    waiting = [row for row, request in enumerate(each) if request.top_k is None and request.top_p < 1]
    streams = {row: random.Random(numbers[row]) for row in waiting}  # noqa: S311  sampling text is not cryptography
    for attempt in range(_DRAWS_OF_A_NUCLEUS):
        waiting = _outside(flat, ids, waiting, [each[row].top_p for row in waiting])
        if not waiting:
            break
        left = flat[waiting]
        if attempt == _DRAWS_OF_A_NUCLEUS - 1:  # a narrow one, seldom hit: it is built after all
            left = torch.stack([truncated(p, None, each[row].top_p) for p, row in zip(left, waiting, strict=True)])
        ids[waiting] = draw(left, [streams[row].random() for row in waiting])
    return ids.view(logits.shape[:2])


def _outside(probabilities: torch.Tensor, ids: torch.Tensor, rows: Sequence[int], top_p: Sequence[float]) -> list[int]:
    """Those of `rows` whose token is not among the fewest likeliest with mass `top_p`."""
    if not rows:
        return []
    p, own = probabilities[rows], ids[rows][:, None]
    likelier = p > p.gather(-1, own)
    mass = torch.where(likelier, p, 0.0).sum(-1).tolist()
    return [row for row, before, limit in zip(rows, mass, top_p, strict=True) if before >= limit]


def draw(weights: torch.Tensor, uniforms: float | Sequence[float] | Sequence[Sequence[float]]) -> torch.Tensor:
    """Token ids [...] drawn from non-negative `weights` [..., V] (of any sum) at `uniforms` [...], each in [0, 1).

    A token of weight zero is never drawn.
    """
    # Sums over a vocabulary need more digits than float32 has; Apple's GPUs have no others.
    precise = torch.float32 if weights.device.type == "mps" else torch.float64
    size = weights.shape[-1]
    padded = functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = padded.reshape(*padded.shape[:-1], -1, _BLOCK)
    whole = blocks.sum(-1).to(precise).cumsum(-1)
    target = torch.tensor(uniforms, dtype=precise, device=weights.device)[..., None] * whole[..., -1:]
    block = _first_above(whole, target)
    before = torch.where(block > 0, whole.gather(-1, (block - 1).clamp(min=0)), 0.0)
    index = block[..., None].expand(*block.shape, _BLOCK)
    inner = blocks.gather(-2, index)[..., 0, :].to(precise).cumsum(-1)
    return (block * _BLOCK + _first_above(inner, target - before))[..., 0]


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """First place [..., 1] whose sum is above `target` [..., 1], or that reaches the total if rounding left none."""
    found = torch.searchsorted(cumulative, target, right=True)
    return found.minimum(torch.searchsorted(cumulative, cumulative[..., -1:].contiguous()))
