"""What is trained on: documents and the verifier's states for them, packed into batches by a seed alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from speculators.algorithms.base import Batch
from speculators.data.packing import pack
from speculators.data.tokens import TokenDataset
from speculators.training.copies import Sent, sent


class States(Protocol):
    """The verifier's states, by document: stored (`data/hidden_states.py`) or made just now (`training/online.py`)."""

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`aux` [length, A*h], `last` [length, h] and `argmax` int [length] of one document.

        Training documents are asked for in the course's order, held-out ones whenever they are judged.
        """


@dataclass(frozen=True)
class TrainingData:
    """Tokens and the verifier's states for the same documents."""

    tokens: TokenDataset
    states: States
    device: torch.device | str = "cpu"

    def batch(self, documents: Sequence[int]) -> Batch:
        """The documents packed one after another; none of them are an empty batch."""
        return self.sent(documents).arrived()

    def sent(self, documents: Sequence[int]) -> Sent:
        """The same, on its way to the device."""
        if not documents:
            nothing = torch.empty(0)
            return Sent(Batch((), nothing.long(), nothing.bool(), aux=nothing, last=nothing, argmax=nothing.long()))
        texts = [self.tokens.document(number) for number in documents]
        states = [self.states.document(number) for number in documents]
        batch = Batch(
            lengths=tuple(len(ids) for ids, _ in texts),
            input_ids=torch.cat([ids for ids, _ in texts]),
            loss_mask=torch.cat([mask for _, mask in texts]),
            aux=torch.cat([aux for aux, _, _ in states]),
            last=torch.cat([last for _, last, _ in states]),
            argmax=torch.cat([argmax for _, _, argmax in states]).long(),
            positions=(
                None
                if self.tokens.positions is None
                else torch.cat([self.tokens.rotary_positions(number) for number in documents])
            ),
        )
        return sent(batch, self.device)

    def in_order(self, documents: Sequence[int], budget: int) -> Iterator[list[int]]:
        """`documents` as they come, in groups of at most `budget` tokens (a longer one alone)."""
        lengths = self.tokens.lengths
        group: list[int] = []
        size = 0
        for number in documents:
            if group and size + int(lengths[number]) > budget:
                yield group
                group, size = [], 0
            group.append(number)
            size += int(lengths[number])
        if group:
            yield group


@dataclass(frozen=True)
class Course:
    """All batches of a training, in order; a position in it is the number of batches done."""

    batches: tuple[tuple[int, ...], ...]
    epoch_ends: tuple[int, ...]
    """Batches done at the end of each epoch."""

    @classmethod
    def plan(cls, tokens: TokenDataset, *, epochs: int, budget: int, seed: int) -> Course:
        """Every epoch packs the training documents anew into batches of at most `budget` tokens."""
        documents = tokens.train_documents
        lengths = [int(tokens.lengths[number]) for number in documents]
        batches: list[tuple[int, ...]] = []
        ends: list[int] = []
        for epoch in range(epochs):
            packed = pack(lengths, budget, seed=seed, epoch=epoch)
            batches.extend(tuple(documents[place] for place in group) for group in packed)
            ends.append(len(batches))
        return cls(tuple(batches), tuple(ends))
