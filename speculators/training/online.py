"""States made while the draft is trained on them: by an engine in a thread of its own, ahead of the trainer.

The thread goes through the course in groups of batches, so that the engine has many documents at once. Groups are cut
from the course's beginning, wherever training begins: a resumed training asks the engine for the same documents
together, and so gets the same numbers. Held-out documents, which every validation reads, are stored for the time.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from speculators.data.hidden_states import check_finite
from speculators.data.tokens import TokenDataset
from speculators.engines.base import DocumentStates
from speculators.engines.opened import Extract, extracting
from speculators.engines.states_wanted import StatesWanted
from speculators.pipeline.step import Reporter
from speculators.recipe.shapes.verifier import TransformersEngine
from speculators.training.batches import Course
from speculators.training.buffer import Buffer, Closed, Triple
from speculators.training.held_out import HeldOut, read_held_out

STOP_SECONDS = 10.0
"""For the thread to end when nobody wants its states any more: the engine may be in the middle of documents."""


@contextmanager
def online_states(
    wanted: StatesWanted,
    tokens: TokenDataset,
    held_out: Sequence[int],
    *,
    buffer_tokens: int,
    folder: Path,
    report: Reporter,
) -> Iterator[OnlineStates]:
    """Open the engine, read the documents `held_out`, and give all states that a training asks for.

    `folder` holds the held-out documents' states, and is taken up again after a kill; it is removed at the end, and
    kept when something fails.
    """
    engine, threads = wanted.opening.engine, None
    if isinstance(engine, TransformersEngine):
        # Torch's number of threads belongs to a thread: the engine's is set in its own, and not in the trainer's.
        engine, threads = msgspec.structs.replace(engine, threads=None), engine.threads
    with extracting(replace(wanted.opening, engine=engine), wanted.layers) as extract:
        held = read_held_out(extract, wanted, tokens, held_out, folder=folder, report=report)
        with closing(OnlineStates(wanted, tokens, held, extract, buffer_tokens, threads)) as states:
            yield states
    shutil.rmtree(folder, ignore_errors=True)


class OnlineStates:
    """The states of held-out documents at any time, and of all others once each, in the course's order."""

    def __init__(
        self,
        wanted: StatesWanted,
        tokens: TokenDataset,
        held: HeldOut,
        extract: Extract,
        buffer_tokens: int,
        threads: int | None = None,
    ) -> None:
        """`threads` of torch for the engine's thread; None: as many as everywhere."""
        self.record: dict[str, Any] = wanted.record
        self._dtype, self._tokens, self._held, self._extract = wanted.dtype, tokens, held, extract
        self._buffer_tokens, self._threads = buffer_tokens, threads
        self._order: Iterator[int] = iter(())
        self._buffer = Buffer(buffer_tokens, 0)
        self._thread: threading.Thread | None = None

    def begin(self, course: Course, start: int) -> None:
        """Make the states of the course's batches from number `start` on; called before the first is asked.

        Once for each course; one before it is through.
        """
        self.close()
        first = sum(len(batch) for batch in course.batches[:start])
        self._order = (number for batch in course.batches[start:] for number in batch)
        self._buffer = Buffer(self._buffer_tokens, first)
        self._thread = threading.Thread(target=self._make, args=(course, first), name="states", daemon=True)
        self._thread.start()

    def document(self, number: int) -> Triple:
        """`aux` [length, A*h], `last` [length, h] and `argmax` int32 [length], as soon as they are made.

        Raises what went wrong in the engine, and ValueError for a document that is not the course's next.
        """
        if number in self._held:
            return self._held.document(number)
        if number != next(self._order, None):
            raise ValueError(f"document {number} is not the next one of the course")
        return self._buffer.take()

    def close(self) -> None:
        """Stop making states, and wait a moment for the thread; one that hangs in its engine ends with that."""
        self._buffer.close()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _make(self, course: Course, first: int) -> None:
        """Put the states of all documents from place `first` on into the buffer."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            for place, documents in groups(course, self._tokens.lengths.tolist(), self._buffer_tokens // 2):
                if place + len(documents) > first:
                    self._make_group(place, documents)
        except Closed:
            pass
        except BaseException as error:  # noqa: BLE001  it is the trainer that has to end by it
            self._buffer.fail(error)

    def _make_group(self, place: int, documents: Sequence[int]) -> None:
        readings = [self._tokens.reading(number) for number in documents]
        self._buffer.reserve(sum(len(one) for one in readings))
        with closing(self._extract(readings)) as found:
            for states in found:
                self._buffer.put(place + states.number, self._kept(states))

    def _kept(self, states: DocumentStates) -> Triple:
        """Copies, in the type that is asked for, so that nothing of the engine's own tensors stays."""
        aux, last = (one.to("cpu", self._dtype, copy=True) for one in (states.aux, states.last))
        check_finite(aux, last)
        return aux, last, states.argmax.to("cpu", copy=True)


def groups(course: Course, lengths: Sequence[int], most_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Consecutive batches together, of at most `most_tokens` tokens (a larger one alone).

    Gives the place of a group's first document in the course, and its documents.
    """
    place, documents, size = 0, list[int](), 0
    for batch in course.batches:
        tokens = sum(lengths[number] for number in batch)
        if documents and size + tokens > most_tokens:
            yield place, documents
            place, documents, size = place + len(documents), [], 0
        documents.extend(batch)
        size += tokens
    if documents:
        yield place, documents
