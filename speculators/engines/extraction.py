"""The verifier's hidden states over many documents, in length-sorted batches, with its greedy predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from speculators.engines.base import DocumentStates
from speculators.engines.transformers import VerifierModel

MOST_BATCH_TOKENS = 4096
"""Larger batches are no faster: the products are at their peak and activations leave the processor's caches."""
HEAD_BYTES = 1 << 26
"""Logits held at once while their argmax is taken."""


def auto_layers(layers: int) -> tuple[int, int, int]:
    """The three streams EAGLE-3 reads by default: 2, n // 2 and n - 3 of n layers.

    Fewer than 6 layers have no such three; the ids are then put in order and kept inside, and some coincide.
    """
    low, middle, high = sorted(min(max(layer, 0), layers) for layer in (2, layers // 2, layers - 3))
    return low, middle, high


def resolve_layers(wanted: Sequence[int] | Literal["auto"], layers: int) -> tuple[int, ...]:
    """The layer ids that a recipe's `aux_layers` means for a verifier of `layers` layers."""
    return auto_layers(layers) if wanted == "auto" else tuple(wanted)


def extract(
    verifier: VerifierModel, documents: Sequence[torch.Tensor], *, batch_tokens: int
) -> Iterator[DocumentStates]:
    """Read every document (int [n], n > 0) and give its states, longest documents first.

    A batch holds documents of nearly the same length, at most `batch_tokens` positions with padding, one document at
    least. Padding stands on the right, where a causal model's real tokens never see it.
    """
    if not verifier.aux_layers:
        raise ValueError("the verifier was loaded without aux_layers, so there are no states to extract")
    limit = min(batch_tokens, MOST_BATCH_TOKENS)
    for batch in length_sorted([len(document) for document in documents], limit):
        lengths = [len(documents[number]) for number in batch]
        ids = torch.zeros(len(batch), max(lengths), dtype=torch.int64)
        for row, number in enumerate(batch):
            ids[row, : lengths[row]] = documents[number]
        out = verifier.forward(ids, None, torch.arange(len(batch)), logits=None)
        assert out.aux is not None  # noqa: S101  aux_layers were checked above
        for row, (number, length) in enumerate(zip(batch, lengths, strict=True)):
            last = out.last[row, :length]
            yield DocumentStates(number, out.aux[row, :length], last, greedy_next(verifier, last))


def greedy_next(verifier: VerifierModel, last: torch.Tensor) -> torch.Tensor:
    """The verifier's argmax after each stream of `last` [n, h], int32 [n], without ever holding all logits."""
    rows = max(1, HEAD_BYTES // (4 * verifier.vocab_size))
    return torch.cat([verifier.argmax(part) for part in torch.split(last, rows)]).to(torch.int32)


def length_sorted(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of documents in batches of like length, the longest first; padded, each is within `batch_tokens`."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + count]
        start += count
