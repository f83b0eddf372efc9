"""A verifier that says fixed texts, and a draft that foresees a chosen part of them: every figure is known ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from speculators.layers.slot_cache import SlotCache

SIZE = 100


@dataclass(frozen=True)
class Output:
    logits: torch.Tensor | None
    aux: torch.Tensor | None


class Counting:
    """After token n comes (n + 1) % SIZE, whatever was before."""

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        return SlotCache(1, slots, 1, 1, capacity)

    def after(self, ids: torch.Tensor) -> torch.Tensor:
        return (ids + 1) % SIZE

    def forward(
        self, input_ids: torch.Tensor, cache: SlotCache, rows: torch.Tensor, logits: Literal["all", "last"] | None
    ) -> Output:
        cache.advance(rows, input_ids.shape[1])
        scores = torch.nn.functional.one_hot(self.after(input_ids), SIZE).float() * 9
        return Output(scores if logits == "all" else scores[:, -1:], input_ids[..., None].float())


class Foresees:
    """Proposes the next numbers; the one that `is_wrong` is replaced by 0."""

    target_ids = None

    drafts_at_once = False

    def __init__(self, is_wrong: Callable[[int], bool]) -> None:
        self.is_wrong = is_wrong

    def new_cache(self, slots: int, capacity: int) -> SlotCache:
        return SlotCache(1, slots, 1, 1, capacity)

    def read(self, cache: SlotCache, rows: torch.Tensor, next_ids: torch.Tensor, aux: torch.Tensor) -> None:
        cache.advance(rows, next_ids.shape[1])

    def propose(
        self,
        cache: SlotCache,
        rows: torch.Tensor,
        next_ids: torch.Tensor,
        aux: torch.Tensor,
        lengths: Sequence[int],
        counts: Sequence[int],
        k: int,
        choose: Any,
    ) -> torch.Tensor:
        newest = [ids[count - 1] for ids, count in zip(next_ids.tolist(), counts, strict=True)]
        chains = [[(one + step + 1) % SIZE for step in range(k)] for one in newest]
        return torch.tensor([[0 if self.is_wrong(token) else token for token in chain] for chain in chains])


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def foresees() -> type[Foresees]:
    return Foresees
