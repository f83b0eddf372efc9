"""A batch goes to a GPU on a stream of copies; who computes with it waits for them, and for nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch
from speculators.training import copies

TENSORS = ("input_ids", "aux", "last", "argmax")


@pytest.fixture
def batch() -> Batch:
    tensors = {name: torch.arange(4) for name in TENSORS}
    return Batch(lengths=(4,), loss_mask=torch.ones(4, dtype=torch.bool), **tensors)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens on a GPU that is not there, in order."""
    said: list[Any] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: object) -> None:
            said.append(f"{self.name} waits")

    class Event:
        def record(self) -> None:
            said.append("all copied")

    @contextlib.contextmanager
    def stream(one: Stream) -> Iterator[None]:
        said.append(f"on {one.name}")
        yield
        said.append(f"off {one.name}")

    def to(self: torch.Tensor, device: object, non_blocking: bool = False) -> torch.Tensor:
        said.append(("copied", non_blocking))
        return self

    computing = Stream("computing")
    monkeypatch.setattr(copies, "_stream", lambda device: Stream("copying"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, one: said.append(f"used by {one.name}"))
    return said


def test_copies_are_begun_at_once_and_waited_for_by_who_uses_them(batch: Batch, told: list[Any]) -> None:
    coming = copies.sent(batch, "cuda:0")
    assert told == ["on copying", *[("copied", True)] * 4, "all copied", "off copying"]
    told.clear()
    assert coming.arrived() == batch
    assert told == ["computing waits", *["used by computing"] * 4]


def test_on_the_processor_it_is_there_at_once(batch: Batch) -> None:
    there = copies.sent(batch, "cpu").arrived()
    assert all(getattr(there, name) is getattr(batch, name) for name in TENSORS)
