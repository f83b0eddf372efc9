"""The verifier's hidden states over many documents, in length-sorted batches, with its greedy predictions."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import torch

from speculators.data.tokens import Reading
from speculators.engines.base import DocumentStates
from speculators.engines.predictions import predictions
from speculators.engines.transformers import VerifierModel

MOST_BATCH_TOKENS = 4096
"""Larger batches are no faster: the products are at their peak and activations leave the processor's caches."""
HEAD_BYTES = 1 << 28
"""Logits held at once while their argmax is taken; with fewer rows the product spends its time on fetching the head."""


def extract(
    verifier: VerifierModel, documents: Sequence[Reading], *, batch_tokens: int
) -> Generator[DocumentStates, None, None]:
    """Read every document and give its states, longest documents first.

    A batch holds documents of nearly the same length, at most `batch_tokens` positions with padding, one document at
    least. Padding stands on the right, where a causal model's real tokens never see it.
    """
    rows = max(1, HEAD_BYTES // (4 * verifier.vocab_size))
    limit = min(batch_tokens, MOST_BATCH_TOKENS)
    for batch in length_sorted([len(document) for document in documents], limit):
        width = max(len(documents[number]) for number in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.int64)
        predicts = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, number in enumerate(batch):
            ids[row, : len(documents[number])] = documents[number].input_ids
            predicts[row, : len(documents[number])] = documents[number].predicts
        images = [documents[number].images for number in batch]
        out = verifier.forward(ids, None, torch.arange(len(batch)), logits=None, images=images)
        aux = out.last[..., :0] if out.aux is None else out.aux  # some drafts read the last state alone
        argmax = predictions(out.last.flatten(0, 1), predicts.flatten(), verifier.argmax, rows).view_as(ids)
        for row, number in enumerate(batch):
            own = row, slice(len(documents[number]))
            choices = documents[number].with_known_choices(argmax[own])
            yield DocumentStates(number, aux[own], out.last[own], choices)


def length_sorted(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of documents in batches of like length, the longest first; padded, each is within `batch_tokens`."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + count]
        start += count
