"""A batch on its way to where it is computed: to a GPU it is copied from pinned memory, beside what that computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from speculators.algorithms.base import Batch

_COMPUTED = ("input_ids", "aux", "last", "argmax")
"""The tensors of a batch that go; the others are read by the processor."""


@dataclass(frozen=True)
class Sent:
    """A batch that must not be used before it has arrived."""

    _batch: Batch
    _copied: Any = None
    """The event that follows the last copy, on the stream of copies."""

    def arrived(self) -> Batch:
        """The batch; whatever is computed with it, in the stream of the thread that asks, waits for the copies.

        The memory is that of the other stream, and is not to be given away while this one uses it.
        """
        if self._copied is not None:
            tensors = [getattr(self._batch, name) for name in _COMPUTED]
            stream = torch.cuda.current_stream(tensors[0].device)
            stream.wait_event(self._copied)
            for tensor in tensors:
                tensor.record_stream(stream)
        return self._batch


def sent(batch: Batch, device: torch.device | str) -> Sent:
    """Begin to copy `batch` to `device`; this thread goes on."""
    if torch.device(device).type != "cuda":
        return Sent(_moved(batch, device))
    with torch.cuda.device(torch.device(device)), torch.cuda.stream(_stream(str(device))):
        there = _moved(batch, device)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return Sent(there, copied)


def _moved(batch: Batch, device: torch.device | str) -> Batch:
    pinned = torch.device(device).type == "cuda"
    tensors = {name: getattr(batch, name) for name in _COMPUTED}
    # The copies run when the stream comes to them, so their sources must stay where they are.
    there = {
        name: (one.pin_memory() if pinned else one).to(device, non_blocking=pinned) for name, one in tensors.items()
    }
    return replace(batch, **there)


@cache
def _stream(device: str) -> torch.cuda.Stream:
    """The stream of a device's copies."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
