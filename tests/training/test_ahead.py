"""Batches are read while others are computed: in order, one ahead, and whatever goes wrong there ends the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Batch, Evaluation
from speculators.training.ahead import Ahead
from speculators.training.batches import Course
from speculators.training.loop import TrainingInputs, train

Build = Callable[..., TrainingInputs]
SECONDS = 20.0


class Watched:
    """States that note in which thread they were asked for, and call `asked` each time."""

    def __init__(self, states: Any, asked: Callable[[int], None]) -> None:
        self._states, self._asked = states, asked
        self.threads: set[str] = set()

    def document(self, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.threads.add(threading.current_thread().name)
        self._asked(number)
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._states.document(number)
        return found


def test_one_is_read_ahead_and_never_two() -> None:
    reading = [threading.Event() for _ in range(4)]

    def read(number: int) -> int:
        reading[number].set()
        return number * number

    with closing(Ahead(read, range(4))) as ahead:
        for number in range(3):
            assert ahead.take() == number * number
            assert reading[number + 1].wait(SECONDS)
            assert not any(one.is_set() for one in reading[number + 2 :])


def test_the_next_batch_is_read_while_a_step_computes(training: Build) -> None:
    """No step ends here before all documents of the next one were asked for."""
    inputs = training(epochs=1)
    tokens = replace(inputs.data.tokens, is_holdout=torch.zeros(30, dtype=torch.bool))
    asked = [threading.Event() for _ in range(30)]
    states = Watched(inputs.data.states, lambda number: asked[number].set())
    course = Course.plan(tokens, epochs=1, budget=inputs.options.tokens_per_step, seed=inputs.seed)
    following = iter([*course.batches[1:], ()])

    class Waiting:
        network, steps = inputs.objective.network, inputs.objective.steps

        def evaluate(self, batch: Batch, *rest: Any) -> Evaluation:
            assert all(asked[number].wait(SECONDS) for number in next(following))
            return inputs.objective.evaluate(batch, *rest)

    data = replace(inputs.data, tokens=tokens, states=states)
    result = train(replace(inputs, data=data, objective=Waiting()))  # type: ignore[arg-type]
    assert result["steps"] == len(course.batches) > 3
    assert states.threads == {"read-ahead"}
    assert 0 <= result["data_wait"] < 1


def test_what_fails_while_reading_ahead_fails_the_training(training: Build) -> None:
    inputs = training(epochs=1)

    def asked(number: int) -> None:
        if threading.current_thread().name == "read-ahead":
            raise OSError("the disk is gone")

    states = Watched(inputs.data.states, asked)
    with pytest.raises(OSError, match="the disk is gone"):
        train(replace(inputs, data=replace(inputs.data, states=states)))


def test_a_closed_one_reads_no_more() -> None:
    read: list[int] = []
    ahead = Ahead(lambda number: read.append(number), range(100))
    ahead.take()
    ahead.close()
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(SECONDS)
            assert not thread.is_alive()
    assert len(read) <= 2
