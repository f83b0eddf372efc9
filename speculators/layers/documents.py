"""The documents of a packed batch as attention sees them: which rows are theirs, and how far each query sees."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class DocumentSpan:
    """One document in a packed batch: its rows among the queries and among the prefix keys."""

    queries: slice
    keys: slice
    visible: torch.Tensor
    """int64 [queries]: how many of the document's keys each query sees."""

    def parts(self, scores: int) -> Iterator[DocumentSpan]:
        """It in parts of so few queries that none has more than so many scores of a head, or a key that none sees."""
        query, key = self.queries.start, self.keys.start
        for visible in torch.split(self.visible, max(1, scores // (self.keys.stop - key))):
            yield DocumentSpan(slice(query, query + len(visible)), slice(key, key + int(visible.max())), visible)
            query += len(visible)


@dataclass(frozen=True)
class Documents:
    """All documents of a batch that have queries, in order.

    Every layer and every step of a chain attends with the same ones, so what is made of them is made once: a copy to a
    GPU in the middle of a step would wait for all that the GPU still has to do.
    """

    spans: tuple[DocumentSpan, ...]
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[DocumentSpan]:
        return iter(self.spans)

    def __len__(self) -> int:
        return len(self.spans)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` made when `key` was first asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def visible(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Each document's `visible` on a device."""
        if not self.spans:
            return ()

        def move() -> tuple[torch.Tensor, ...]:
            together = torch.cat([span.visible for span in self.spans]).to(device, non_blocking=True)
            return torch.split(together, [len(span.visible) for span in self.spans])

        found: tuple[torch.Tensor, ...] = self.once(device, move)
        return found
