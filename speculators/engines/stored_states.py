"""An engine's hidden states, on their way into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from speculators.data.hidden_states import Shard, ShardWriter
from speculators.data.tokens import Reading
from speculators.engines.opened import Extract


def write_shards(
    extract: Extract,
    document: Callable[[int], Reading],
    shards: Sequence[Shard],
    dtype: torch.dtype,
    folder: Path,
) -> Iterator[int]:
    """Extract and publish one shard after another; gives the number of tokens done, after each document.

    `document` gives the document of a number that the shards speak of.
    """
    done = 0
    for shard in shards:
        documents = [document(shard.first_document + place) for place in range(shard.documents)]
        writer = ShardWriter(shard, [len(one) for one in documents], dtype)
        for states in extract(documents):
            writer.put(states.number, states.aux, states.last, states.argmax)
            done += len(states.argmax)
            yield done
        writer.publish(folder)
