"""The draft's vocabulary: the token ids it may propose, and the two maps between draft ids and verifier ids.

`d2t` int64 [Vd] holds *offsets*, as the checkpoint format wants them: verifier id = draft id + d2t[draft id]. `t2d`
bool [V] says which verifier ids the draft has. Draft ids are in the order of verifier ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from speculators.errors import UsageError


@dataclass(frozen=True)
class Coverage:
    """The share of loss positions whose token the draft can propose, from 0 to 1."""

    train: float
    holdout: float


@dataclass(frozen=True)
class DraftVocabulary:
    """A draft vocabulary, or the verifier's whole one, for which `d2t` and `t2d` are None."""

    draft_vocab_size: int
    verifier_vocab_size: int
    d2t: torch.Tensor | None
    t2d: torch.Tensor | None
    coverage: Coverage

    @classmethod
    def whole(cls, size: int) -> DraftVocabulary:
        """The whole vocabulary of a verifier of `size` tokens."""
        return cls(size, size, None, None, Coverage(1.0, 1.0))

    @classmethod
    def open(cls, path: Path) -> DraftVocabulary:
        """Open a vocabulary artifact directory."""
        record = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))
        file = path / "vocabulary.safetensors"
        maps = load_file(file) if file.is_file() else {}
        return cls(
            draft_vocab_size=record["draft_vocab_size"],
            verifier_vocab_size=record["verifier_vocab_size"],
            d2t=maps.get("d2t"),
            t2d=maps.get("t2d"),
            coverage=Coverage(train=record["coverage"], holdout=record["coverage_holdout"]),
        )

    def save(self, path: Path) -> None:
        """Write the vocabulary artifact into the directory `path`; the maps only when there are any."""
        if self.d2t is not None and self.t2d is not None:
            save_file({"d2t": self.d2t, "t2d": self.t2d}, path / "vocabulary.safetensors")
        record = {
            "draft_vocab_size": self.draft_vocab_size,
            "verifier_vocab_size": self.verifier_vocab_size,
            "coverage": self.coverage.train,
            "coverage_holdout": self.coverage.holdout,
        }
        (path / "vocabulary.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def most_frequent(counts: torch.Tensor, size: int, *, always: Iterable[int] = ()) -> torch.Tensor:
    """The `size` token ids counted most often (ties: the smaller id), `always` among them; int64 [size], ascending.

    Raises UsageError when `size` is larger than the verifier's vocabulary or too small for the ids in `always`.
    """
    needed = sorted({number for number in always if 0 <= number < len(counts)})
    if size > len(counts):
        raise UsageError(
            f"`algorithm.draft_vocab_size` is {size}, but the verifier has {len(counts)} tokens; null takes them all"
        )
    if size < len(needed):
        raise UsageError(
            f"`algorithm.draft_vocab_size` is {size}, too small for the verifier's {len(needed)} special tokens"
        )
    ranked = counts.clone()
    ranked[needed] = counts.max() + 1
    kept = torch.argsort(ranked, descending=True, stable=True)[:size]
    return kept.sort().values


def offsets(kept: torch.Tensor) -> torch.Tensor:
    """`d2t` of ascending verifier ids: int64 [Vd], to be *added* to draft ids."""
    return kept - torch.arange(len(kept))


def membership(kept: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """`t2d` of verifier ids: bool [vocab_size]."""
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[kept] = True
    return mask


def verifier_ids(d2t: torch.Tensor) -> torch.Tensor:
    """The verifier id of every draft id, int64 [Vd]."""
    return torch.arange(len(d2t)) + d2t


def draft_ids(t2d: torch.Tensor) -> torch.Tensor:
    """The draft id of every verifier id, -1 where the draft has none, int64 [V]."""
    return torch.where(t2d, t2d.long().cumsum(0) - 1, -1)


def covered(counts: torch.Tensor, kept: torch.Tensor) -> float:
    """The share of counted tokens that are in `kept`; 1 when nothing was counted."""
    total = int(counts.sum())
    return int(counts[kept].sum()) / total if total else 1.0
