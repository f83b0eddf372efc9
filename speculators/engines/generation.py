"""Many requests through one verifier: continuous batches over the one decoding loop, answers as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.engines.base import Answer
from speculators.engines.transformers import VerifierModel

MOST_SLOTS = 160
"""Rows of a batch. More make no matrix product faster, and all of them wait for the longest."""
REFILL = 2
"""A batch is refilled when one of so many slots is free: rows of one age are equally long, little is read in vain."""
SMALLEST_BATCH = 512
"""Requests that need up to so many tokens share a batch; above, each batch takes those up to twice as long."""


def generate(verifier: VerifierModel, requests: Sequence[Request], *, batch_tokens: int) -> Iterator[Answer]:
    """Answer every request; answers come as they finish, in no order, each with its request's number.

    `batch_tokens` bounds the positions that the caches of a batch hold: requests times the longest prompt and answer
    among them; one request is always taken. Long requests are batched apart from short ones, and prompts of like
    length are read together, so that little is padded. An answer depends on its own request alone (in float32, up to
    rounding; see `decoding.sampling` for seeds).
    """
    for batch in _batches(requests):
        longest = max(_needed(requests[number]) for number in batch)
        slots = max(1, min(MOST_SLOTS, len(batch), batch_tokens // longest))
        decoder = Decoder(verifier, slots=slots, capacity=longest)
        yield from _drain(decoder, requests, deque(batch))


def _drain(decoder: Decoder, requests: Sequence[Request], waiting: deque[int]) -> Iterator[Answer]:
    written: dict[int, tuple[int, list[int]]] = {}  # by slot: the request's number and its tokens so far
    refill = max(1, decoder.slots // REFILL)
    while waiting or not decoder.is_idle:
        if decoder.free >= refill or decoder.is_idle:
            for _ in range(min(decoder.free, len(waiting))):
                number = waiting.popleft()
                written[decoder.admit(requests[number])] = (number, [])
        for commit in decoder.step():
            number, tokens = written[commit.slot]
            tokens += commit.tokens
            if commit.reason is not None:
                del written[commit.slot]
                yield Answer(number, tokens, commit.reason)


def _batches(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Numbers of requests of like size, the largest first, sorted by prompt length, the longest first."""
    sizes: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        limit = SMALLEST_BATCH
        while limit < _needed(request):
            limit *= 2
        sizes.setdefault(limit, []).append(number)
    for limit in sorted(sizes, reverse=True):
        yield sorted(sizes[limit], key=lambda number: -len(requests[number].prompt_ids))


def _needed(request: Request) -> int:
    return len(request.prompt_ids) + request.max_new_tokens
