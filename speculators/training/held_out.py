"""The states of held-out documents for a training that stores no others: read once, as every validation needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from speculators.data.hidden_states import HiddenStates, is_whole, plan_shards, write_record
from speculators.data.tokens import TokenDataset
from speculators.engines.opened import Extract
from speculators.engines.states_wanted import StatesWanted
from speculators.engines.stored_states import write_shards
from speculators.pipeline.step import Reporter

_SHARD_BYTES = 1 << 28


@dataclass(frozen=True)
class HeldOut:
    """Stored states of some documents: `places` says where each document's are."""

    places: dict[int, int]
    stored: HiddenStates | None

    def __contains__(self, number: int) -> bool:
        return number in self.places

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`aux` [length, A*h], `last` [length, h] and `argmax` int32 [length] of one document, as memory maps."""
        assert self.stored is not None  # noqa: S101  there are places, so something is stored
        return self.stored.document(self.places[number])


def read_held_out(
    extract: Extract,
    wanted: StatesWanted,
    tokens: TokenDataset,
    documents: Sequence[int],
    *,
    folder: Path,
    report: Reporter,
) -> HeldOut:
    """Store in `folder` the states of the documents with these numbers, as far as an earlier attempt has not."""
    if not documents:
        return HeldOut({}, None)
    folder.mkdir(exist_ok=True)
    shards = plan_shards([int(tokens.lengths[number]) for number in documents], wanted.row_bytes, _SHARD_BYTES)
    waiting = [shard for shard in shards if not is_whole(folder / shard.file, shard)]
    total = sum(shard.tokens for shard in waiting)
    for done in write_shards(extract, lambda place: tokens.reading(documents[place]), waiting, wanted.dtype, folder):
        report.progress(done, total, "held-out tokens")
    write_record(folder, wanted.record, shards)
    return HeldOut({number: place for place, number in enumerate(documents)}, HiddenStates.open(folder))
