"""Between an engine that makes states and a training that takes them: in order, and never more than a bound.

Every document of the course has a place, its number in the order in which training asks. Room is reserved before the
engine is asked for anything, so what it is still working on counts as well.
"""

from __future__ import annotations

import threading

import torch

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""`aux` [n, A*h], `last` [n, h] and `argmax` int [n] of one document."""


class Closed(Exception):
    """Nobody takes any more; whoever puts stops, and whoever still waits."""


class Buffer:
    """States of at most `most_tokens` tokens, put in any order, taken from place `first` on."""

    def __init__(self, most_tokens: int, first: int) -> None:
        self._most_tokens, self._next = most_tokens, first
        self._reserved = 0
        self._waiting: dict[int, Triple] = {}
        self._error: BaseException | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def reserve(self, tokens: int) -> None:
        """Wait until there is room for as many. Raises Closed, and ValueError for more than there ever will be."""
        if tokens > self._most_tokens:
            raise ValueError(f"{tokens} tokens at once, and the buffer holds {self._most_tokens}")
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._reserved + tokens <= self._most_tokens)
            self._check_open()
            self._reserved += tokens

    def put(self, place: int, states: Triple) -> None:
        """The states of the document at `place`, for which room was reserved; before `first` they are let go."""
        with self._changed:
            self._check_open()
            if place < self._next:
                self._reserved -= len(states[2])
            else:
                self._waiting[place] = states
            self._changed.notify_all()

    def take(self) -> Triple:
        """Wait for the next document's states; raises what went wrong while they were made, and Closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._error is not None or self._next in self._waiting)
            if self._error is not None:
                raise self._error
            self._check_open()
            states = self._waiting.pop(self._next)
            self._next += 1
            self._reserved -= len(states[2])
            self._changed.notify_all()
            return states

    def fail(self, error: BaseException) -> None:
        """Nothing more is put; whoever takes is told why."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is taken."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed
