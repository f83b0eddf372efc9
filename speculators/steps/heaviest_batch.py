"""The batch that will take a training's most memory, found in a tokens artifact without loading anything heavy.

`tokens.safetensors` is a header and plain arrays; offsets and loss mask are read from it directly.
"""

from __future__ import annotations

import json
from array import array
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

from speculators.data.packing import pack

MOST_TOKENS = 64 << 20
"""Planning stays instant: a larger artifact is not looked into."""


def heaviest_batch(tokens: Path, budget: int, seed: int, most_chains: int | None = None) -> dict[str, float]:
    """Of the first epoch's batches, the heaviest: its tokens, its chains, and its documents' chains times tokens.

    A document has as many chains as it has answer tokens, which are `batch_answers`, and never more than `most_chains`.
    `tokens` is the artifact's directory. The figures are named `batch_*`; there are none of too many tokens.
    """
    with (tokens / "tokens.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        if header["input_ids"]["shape"][0] > MOST_TOKENS:
            return {}
        offsets = array("q", _read(file, start, header["offsets"]))
        mask, holdout = _read(file, start, header["loss_mask"]), _read(file, start, header["holdout"])
    documents = []
    for (begin, end), held in zip(pairwise(offsets), holdout, strict=True):
        if not held:
            answers = mask.count(1, begin, end)
            chains = answers if most_chains is None else min(answers, most_chains)
            documents.append(_Document(end - begin, answers, chains))
    batches = pack([one.tokens for one in documents], budget, seed=seed)
    weights = [[documents[number] for number in batch] for batch in batches]
    if not weights:
        return {}
    heaviest = max(weights, key=lambda batch: sum(one.chains * (1000 + one.tokens) for one in batch))
    return {
        "batch_tokens": float(sum(one.tokens for one in heaviest)),
        "batch_answers": float(sum(one.answers for one in heaviest)),
        "batch_chains": float(sum(one.chains for one in heaviest)),
        "batch_scores": float(sum(one.tokens * one.chains for one in heaviest)),
        "batch_longest": float(max(one.tokens * one.chains for one in heaviest)),
    }


class _Document(NamedTuple):
    tokens: int
    answers: int
    chains: int


def _read(file: BinaryIO, start: int, entry: dict[str, list[int]]) -> bytes:
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    return file.read(end - begin)
