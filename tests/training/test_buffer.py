"""The buffer between engine and trainer: in order, within its bound, and neither side waits for one that has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from speculators.training.buffer import Buffer, Closed, Triple


def states(tokens: int) -> Triple:
    return torch.zeros(tokens, 3), torch.zeros(tokens, 1), torch.arange(tokens)


def aside(do: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do something in another thread; gives the thread, and where its result or error will be."""
    found: list[object] = []

    def work() -> None:
        try:
            found.append(do())
        except Exception as error:  # noqa: BLE001
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, found


def test_documents_come_out_in_order_whatever_the_order_they_came_in() -> None:
    buffer = Buffer(20, first=4)
    buffer.reserve(9)
    for place in (6, 4, 5):
        buffer.put(place, states(place - 2))
    assert [len(buffer.take()[2]) for _ in range(3)] == [2, 3, 4]


def test_room_comes_back_with_what_is_taken_and_with_what_nobody_wants() -> None:
    buffer = Buffer(10, first=1)
    buffer.reserve(10)
    thread, _ = aside(lambda: buffer.reserve(6))
    buffer.put(0, states(4))
    assert thread.is_alive()
    buffer.put(1, states(6))
    assert thread.is_alive()
    assert len(buffer.take()[2]) == 6
    thread.join(10)
    assert not thread.is_alive()


def test_more_than_there_ever_will_be_is_refused() -> None:
    with pytest.raises(ValueError, match="11 tokens at once, and the buffer holds 10"):
        Buffer(10, first=0).reserve(11)


def test_who_waits_for_states_is_told_why_there_are_none() -> None:
    buffer = Buffer(10, first=0)
    thread, found = aside(buffer.take)
    buffer.fail(OSError("the engine is gone"))
    thread.join(10)
    assert str(found[0]) == "the engine is gone"


def test_who_waits_for_room_ends_when_nobody_takes_any_more() -> None:
    buffer = Buffer(10, first=0)
    buffer.reserve(10)
    thread, found = aside(lambda: buffer.reserve(1))
    buffer.close()
    thread.join(10)
    assert isinstance(found[0], Closed)
    with pytest.raises(Closed):
        buffer.put(0, states(3))


def test_who_waits_for_states_that_nobody_makes_any_more_is_told() -> None:
    buffer = Buffer(20, first=0)
    thread, found = aside(buffer.take)
    buffer.close()
    thread.join(20)
    assert [type(one) for one in found] == [Closed]
