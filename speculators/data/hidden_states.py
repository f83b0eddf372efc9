"""Stored hidden states: sharded safetensors in document order, read by memory map.

A shard holds `aux` [n, A*h], `last` [n, h] and `argmax` int32 [n] of consecutive documents, and their `lengths` int64;
row r of a shard belongs to token `first_token + r` of the tokens artifact. `argmax` is NOT_TAKEN outside of answers.
`states.json`, written last, names the layers, the dtype, and what made them. A shard's file gets its name only when it
is whole.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from speculators.errors import ArtifactMismatch

RECORD = "states.json"
NOT_TAKEN = torch.iinfo(torch.int32).min
"""In `argmax`, where it was not wanted: no token's id, and an error wherever it is used as an index."""


@dataclass(frozen=True)
class Shard:
    """Consecutive documents, and where their rows lie among all tokens."""

    file: str
    first_document: int
    documents: int
    first_token: int
    tokens: int


def plan_shards(lengths: Sequence[int], row_bytes: int, shard_bytes: int) -> list[Shard]:
    """Consecutive documents of `lengths` tokens in shards of about `shard_bytes`, one document at the least."""
    shards: list[Shard] = []
    first_document = first_token = documents = tokens = 0
    for number, length in enumerate(lengths):
        if documents and (tokens + length) * row_bytes > shard_bytes:
            shards.append(Shard(_name(len(shards)), first_document, documents, first_token, tokens))
            first_document, first_token, documents, tokens = number, first_token + tokens, 0, 0
        documents, tokens = documents + 1, tokens + length
    if documents:
        shards.append(Shard(_name(len(shards)), first_document, documents, first_token, tokens))
    return shards


class ShardWriter:
    """Collects the documents of one shard, in any order, and publishes it by a rename."""

    def __init__(self, shard: Shard, lengths: Sequence[int], dtype: torch.dtype) -> None:
        """`lengths`: of the shard's documents, in order."""
        self._shard, self._lengths, self._dtype = shard, lengths, dtype
        self._starts = [sum(lengths[:place]) for place in range(len(lengths))]
        self._tensors: dict[str, torch.Tensor] = {}

    def put(self, place: int, aux: torch.Tensor, last: torch.Tensor, argmax: torch.Tensor) -> None:
        """The states of the shard's document number `place`."""
        if not self._tensors:
            rows = self._shard.tokens
            self._tensors = {
                "aux": torch.empty(rows, aux.shape[1], dtype=self._dtype),
                "last": torch.empty(rows, last.shape[1], dtype=self._dtype),
                "argmax": torch.empty(rows, dtype=torch.int32),
            }
        rows_of = slice(self._starts[place], self._starts[place] + self._lengths[place])
        for name, rows_in in (("aux", aux), ("last", last), ("argmax", argmax)):
            self._tensors[name][rows_of] = rows_in.to(self._tensors[name].dtype)

    def publish(self, folder: Path) -> None:
        """Write the file; raises ArtifactMismatch when a state left the range of its type."""
        check_finite(self._tensors["aux"], self._tensors["last"])
        partial = folder / f"{self._shard.file}.partial"
        save_file({**self._tensors, "lengths": torch.tensor(self._lengths)}, partial)
        partial.replace(folder / self._shard.file)


def check_finite(aux: torch.Tensor, last: torch.Tensor) -> None:
    """Raise ArtifactMismatch when a state left the range of its type."""
    for name, states in (("aux", aux), ("last", last)):
        if not torch.isfinite(states).all():
            raise ArtifactMismatch(
                f"hidden states ({name}) are not finite in {states.dtype}; store them as bfloat16 or float32: "
                "`data.hidden_states.dtype`"
            )


def is_whole(file: Path, shard: Shard) -> bool:
    """Whether a shard's file is there with all of its rows; its header and size are read, not its data."""
    try:
        with safe_open(file, "pt") as opened:
            rows = {name: opened.get_slice(name).get_shape()[0] for name in ("aux", "last", "argmax", "lengths")}
    except (OSError, SafetensorError):
        return False
    return rows == {"aux": shard.tokens, "last": shard.tokens, "argmax": shard.tokens, "lengths": shard.documents}


def write_record(folder: Path, record: dict[str, Any], shards: Sequence[Shard]) -> None:
    """Write `states.json`: the last file of the artifact."""
    whole = {**record, "shards": [asdict(shard) for shard in shards]}
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / RECORD)


@dataclass(frozen=True)
class HiddenStates:
    """A hidden-states artifact, opened; `record` is its `states.json`."""

    record: dict[str, Any]
    _tensors: tuple[dict[str, torch.Tensor], ...]
    _starts: torch.Tensor
    """[documents] int64: the first row of each document within its shard."""
    _lengths: torch.Tensor
    """[documents] int64."""
    _first_documents: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> HiddenStates:
        """Open the artifact directory; raises ArtifactMismatch when a shard is not whole."""
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        shards = [Shard(**entry) for entry in record["shards"]]
        broken = next((shard.file for shard in shards if not is_whole(path / shard.file, shard)), None)
        if broken is not None:
            raise ArtifactMismatch(f"the shard {broken} in {path} is not whole")
        tensors = tuple(_mapped(path / shard.file) for shard in shards)
        lengths = torch.cat([shard["lengths"] for shard in tensors])
        starts = torch.cat([shard["lengths"].cumsum(0) - shard["lengths"] for shard in tensors])
        return cls(record, tensors, starts, lengths, tuple(shard.first_document for shard in shards))

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`aux` [length, A*h], `last` [length, h] and `argmax` int32 [length] of one document, as memory maps."""
        tensors = self._tensors[bisect_right(self._first_documents, number) - 1]
        start = int(self._starts[number])
        rows = slice(start, start + int(self._lengths[number]))
        return tensors["aux"][rows], tensors["last"][rows], tensors["argmax"][rows]


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in ("aux", "last", "argmax", "lengths")}


def _name(number: int) -> str:
    return f"states-{number:05}.safetensors"
