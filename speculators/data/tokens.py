"""Tokenised documents: one after another in one safetensors file, read by memory map.

`tokens.safetensors` holds input_ids int32 [T], loss_mask uint8 [T], offsets int64 [n+1], holdout uint8 [n], greedy_from
int32 [n]; `tokens.json` says what they were made with. `loss_mask[t]` is 1 where token t itself was written by the
assistant, its stop token included. From `greedy_from` on a document is the verifier's own greedy answer; it is the
document's length where there is none. Where documents have images, `positions` int32 [T] is there too, `tokens.json`
names the images by document number, and they lie in `images/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from speculators.data.images import image_files
from speculators.errors import UsageError


@dataclass(frozen=True)
class Document:
    """One conversation as tokens; `loss_mask` is as long as `input_ids`.

    `greedy_from` is the place, from 1, of the first token of the verifier's own greedy answer, None without one.
    `images` are the file names of its images; `positions` the rotary positions that a draft takes for its tokens, None
    where these are their places.
    """

    id: str
    input_ids: Sequence[int]
    loss_mask: Sequence[int]
    is_holdout: bool
    greedy_from: int | None = None
    images: Sequence[str] = ()
    positions: Sequence[int] | None = None


@dataclass(frozen=True)
class Reading:
    """A document as the verifier reads it for its states: `input_ids` int64 [n], n > 0, and `predicts` bool [n].

    `predicts` is true after which tokens the verifier's own next token has to be computed: that costs a product with
    the whole vocabulary. Nobody asks for it where the token that follows is not the assistant's, and it is known where
    the text goes on with what the verifier chose: from token `greedy_from` on (None: nowhere). `images` are the files
    of its images.
    """

    input_ids: torch.Tensor
    predicts: torch.Tensor
    greedy_from: int | None = None
    images: tuple[Path, ...] = ()

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.input_ids)

    def with_known_choices(self, argmax: torch.Tensor) -> torch.Tensor:
        """`argmax` int32 [n] of the computed choices, and in their places those that the text itself shows."""
        if self.greedy_from is not None:
            argmax[self.greedy_from - 1 : -1] = self.input_ids[self.greedy_from :]
        return argmax


@dataclass(frozen=True)
class TokenOrigin:
    """What the tokens were made with; whoever pairs them with a verifier compares these."""

    vocab_size: int
    special_ids: tuple[int, ...]
    tokenizer_sha256: str
    chat_template_sha256: str
    max_length: int


@dataclass(frozen=True)
class TokenDataset:
    """A tokens artifact, opened. Tensors are memory maps of the file: slice them, do not write to them.

    `input_ids` int32 [T], `loss_mask` bool [T], `offsets` int64 [n+1], `is_holdout` bool [n], `greedy_from` int32 [n];
    `positions` int32 [T] and `images` (by document number) where there are images.
    """

    input_ids: torch.Tensor
    loss_mask: torch.Tensor
    offsets: torch.Tensor
    is_holdout: torch.Tensor
    greedy_from: torch.Tensor
    ids: tuple[str, ...]
    origin: TokenOrigin
    positions: torch.Tensor | None = None
    images: Mapping[int, tuple[Path, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> TokenDataset:
        """Open the artifact directory `path`; raises UsageError when its two files do not belong together."""
        record = json.loads((path / "tokens.json").read_text(encoding="utf-8"))
        with safe_open(path / "tokens.safetensors", framework="pt") as file:
            input_ids, offsets = file.get_tensor("input_ids"), file.get_tensor("offsets")
            loss_mask, holdout = file.get_tensor("loss_mask").view(torch.bool), file.get_tensor("holdout").bool()
            greedy_from = file.get_tensor("greedy_from")
            positions = file.get_tensor("positions") if "positions" in file.keys() else None  # noqa: SIM118
        images = {int(number): image_files(path, names) for number, names in record.get("images", {}).items()}
        ids = tuple(record["ids"])
        whole = len(ids) == len(holdout) == len(offsets) - 1 and int(offsets[-1]) == len(input_ids) == len(loss_mask)
        if not whole:
            raise UsageError(f"{path}: tokens.json and tokens.safetensors do not describe the same documents")
        origin = TokenOrigin(
            vocab_size=record["vocab_size"],
            special_ids=tuple(record["special_ids"]),
            tokenizer_sha256=record["tokenizer_sha256"],
            chat_template_sha256=record["chat_template_sha256"],
            max_length=record["max_length"],
        )
        return cls(input_ids, loss_mask, offsets, holdout, greedy_from, ids, origin, positions, images)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.ids)

    @property
    def vocab_size(self) -> int:
        """The verifier's vocabulary, as its logits have it."""
        return self.origin.vocab_size

    @property
    def tokens(self) -> int:
        """All tokens of all documents."""
        return len(self.input_ids)

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each document, int64 [n]."""
        return self.offsets.diff()

    @property
    def train_documents(self) -> list[int]:
        """Numbers of the documents to learn from, in order."""
        return [number for number, held_out in enumerate(self.is_holdout.tolist()) if not held_out]

    @property
    def holdout_documents(self) -> list[int]:
        """Numbers of the documents kept for validation, in order."""
        return [number for number, held_out in enumerate(self.is_holdout.tolist()) if held_out]

    def span(self, number: int) -> tuple[int, int]:
        """First token of document `number`, and the one after its last."""
        return int(self.offsets[number]), int(self.offsets[number + 1])

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Document `number`: input_ids int64 [length] and loss_mask bool [length], both copies."""
        start, end = self.span(number)
        return self.input_ids[start:end].long(), self.loss_mask[start:end].clone()

    def rotary_positions(self, number: int) -> torch.Tensor:
        """The rotary positions that a draft takes for the tokens of document `number`, int64 [length]."""
        start, end = self.span(number)
        return torch.arange(end - start) if self.positions is None else self.positions[start:end].long()

    def reading(self, number: int) -> Reading:
        """Document `number` for the verifier, whose choice is wanted wherever the next token is the assistant's."""
        input_ids, loss_mask = self.document(number)
        images = self.images.get(number, ())
        predicts = torch.cat([loss_mask[1:], loss_mask.new_zeros(1)])
        greedy_from = int(self.greedy_from[number])
        if greedy_from >= len(input_ids):
            return Reading(input_ids, predicts, images=images)
        predicts[greedy_from - 1 :] = False
        return Reading(input_ids, predicts, greedy_from, images)

    def loss_counts(self, *, holdout: bool = False) -> torch.Tensor:
        """How often each token id stands at a loss position of the train (or holdout) documents, int64 [V]."""
        chosen = self.loss_mask & torch.repeat_interleave(self.is_holdout == holdout, self.lengths)
        return torch.bincount(self.input_ids[chosen].long(), minlength=self.vocab_size)


def save_tokens(path: Path, documents: Sequence[Document], origin: TokenOrigin) -> None:
    """Write a tokens artifact into the directory `path`, documents in the order given."""
    lengths = torch.tensor([0, *(len(document.input_ids) for document in documents)], dtype=torch.int64)
    input_ids = torch.empty(int(lengths.sum()), dtype=torch.int32)
    loss_mask = torch.empty(int(lengths.sum()), dtype=torch.uint8)
    offsets = lengths.cumsum(0)
    for start, document in zip(offsets.tolist(), documents, strict=False):
        end = start + len(document.input_ids)
        input_ids[start:end] = torch.as_tensor(document.input_ids, dtype=torch.int32)
        loss_mask[start:end] = torch.as_tensor(document.loss_mask, dtype=torch.uint8)
    holdout = torch.tensor([document.is_holdout for document in documents], dtype=torch.uint8)
    greedy_from = torch.tensor(
        [len(one.input_ids) if one.greedy_from is None else one.greedy_from for one in documents], dtype=torch.int32
    )
    tensors = {
        "input_ids": input_ids,
        "loss_mask": loss_mask,
        "offsets": offsets,
        "holdout": holdout,
        "greedy_from": greedy_from,
    }
    images = {str(number): list(one.images) for number, one in enumerate(documents) if one.images}
    if images:
        places = [range(len(one.input_ids)) if one.positions is None else one.positions for one in documents]
        tensors["positions"] = torch.cat([torch.tensor(list(own), dtype=torch.int32) for own in places])
    save_file(tensors, path / "tokens.safetensors")
    record = {
        "documents": len(documents),
        "holdout_documents": int(holdout.sum()),
        "tokens": len(input_ids),
        "loss_tokens": int(loss_mask.sum()),
        "vocab_size": origin.vocab_size,
        "special_ids": list(origin.special_ids),
        "tokenizer_sha256": origin.tokenizer_sha256,
        "chat_template_sha256": origin.chat_template_sha256,
        "max_length": origin.max_length,
        "ids": [document.id for document in documents],
        **({"images": images} if images else {}),
    }
    (path / "tokens.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
