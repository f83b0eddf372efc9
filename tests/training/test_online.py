"""Training on states as they are made is training on stored ones; the buffer keeps its bound, and nothing stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.data.tokens import Reading, TokenDataset
from speculators.engines.base import DocumentStates
from speculators.engines.opened import Opening
from speculators.engines.states_wanted import StatesWanted
from speculators.errors import ArtifactMismatch, StepError
from speculators.recipe.shapes.verifier import TransformersEngine
from speculators.training.batches import Course
from speculators.training.held_out import HeldOut, read_held_out
from speculators.training.loop import Silent, TrainingInputs, train
from speculators.training.online import OnlineStates, groups

Build = Callable[..., TrainingInputs]
BOUND = 320


class Engine:
    """Gives states of a fixed map, the last document first, and remembers what it was asked for."""

    def __init__(self, made: Callable[[torch.Tensor], Any], *, rounds: bool = False) -> None:
        """`rounds`: the numbers depend a little on which documents are read together, as an engine's do."""
        self._made, self._rounds = made, rounds
        self.asked: list[list[int]] = []
        self.is_closed = True

    def __call__(self, documents: Sequence[Reading]) -> Generator[DocumentStates, None, None]:
        self.asked.append([len(document) for document in documents])
        self.is_closed = False
        try:
            for number in reversed(range(len(documents))):
                aux, last, argmax = self._made(documents[number].input_ids)
                together = 1e-3 * len(documents) if self._rounds else 0.0
                yield DocumentStates(number, aux + together, last, argmax)
        finally:
            self.is_closed = True


def wanted(dtype: torch.dtype = torch.float32) -> StatesWanted:
    engine = TransformersEngine(device="cpu", threads=None, batch_tokens=1)
    return StatesWanted({"hidden_size": 16}, Opening(engine, Path(), "float32", None, Path()), (1, 2, 4), dtype)


@contextmanager
def online(
    inputs: TrainingInputs, engine: Engine, threads: int | None = None, dtype: torch.dtype = torch.float32
) -> Iterator[TrainingInputs]:
    """The same training with the engine's states; at its end no thread is left."""
    tokens, folder = inputs.data.tokens, inputs.output / "held-out"
    held = read_held_out(engine, wanted(dtype), tokens, tokens.holdout_documents, folder=folder, report=Silent())
    with closing(OnlineStates(wanted(dtype), tokens, held, engine, BOUND, threads)) as states:
        yield replace(inputs, data=replace(inputs.data, states=states), begin=states.begin)
    assert [thread for thread in threading.enumerate() if thread.name == "states"] == []
    assert engine.is_closed


def of(inputs: TrainingInputs) -> Any:
    """The states that the training would read, as a function of a document's tokens."""
    return inputs.data.states.of  # type: ignore[attr-defined]


def draft(inputs: TrainingInputs) -> bytes:
    return (inputs.output / "model.safetensors").read_bytes()


def test_it_ends_in_the_same_bits_as_with_stored_states(training: Build) -> None:
    offline = training("offline")
    wanted = train(offline)
    with online(training("online"), Engine(of(offline))) as inputs:
        found = train(inputs)
    assert draft(inputs) == draft(offline)
    assert (found["best"], found["final"], found["steps"]) == (wanted["best"], wanted["final"], wanted["steps"])
    assert 0 < found["data_wait"] < 1
    assert 0 < wanted["data_wait"] < 1


def test_every_epoch_asks_for_every_document_again_many_at_once(training: Build) -> None:
    with online(training(epochs=3), engine := Engine(of(training()))) as inputs:
        train(inputs)
    tokens = inputs.data.tokens
    held_out, *asked = engine.asked
    assert sorted(chain.from_iterable(asked)) == sorted(
        3 * [int(tokens.lengths[one]) for one in tokens.train_documents]
    )
    assert sorted(held_out) == sorted(int(tokens.lengths[one]) for one in tokens.holdout_documents)
    assert len(asked) < len(Course.plan(tokens, epochs=3, budget=64, seed=7).batches)


def test_what_is_on_its_way_never_exceeds_the_bound(training: Build) -> None:
    peaks: list[int] = []
    taken: list[int] = []

    class Watched(Engine):
        def __call__(self, documents: Sequence[Reading]) -> Generator[DocumentStates, None, None]:
            found = super().__call__(documents)
            peaks.append(sum(sum(lengths) for lengths in self.asked[1:]) + sum(map(len, documents)) - sum(taken))
            return found

    with online(training(), Watched(of(training()))) as inputs:
        states, tokens = inputs.data.states, inputs.data.tokens

        class Counting:
            def document(self, number: int) -> Any:
                if not tokens.is_holdout[number]:
                    taken.append(int(tokens.lengths[number]))
                return states.document(number)

        train(replace(inputs, data=replace(inputs.data, states=Counting())))
    assert BOUND // 2 < max(peaks[1:]) <= BOUND


def test_a_stopped_training_asks_for_the_same_documents_together_and_ends_in_the_same_bits(training: Build) -> None:
    class Stop(BaseException):
        pass

    class After(Silent):
        calls = 0

        def progress(self, done: int, total: int, unit: str) -> None:
            self.calls += 1
            if self.calls == 7:
                raise Stop

    made = of(training())
    with online(training("whole"), Engine(made, rounds=True)) as whole:
        train(whole)
    with online(training("parts", save_every=5), Engine(made, rounds=True)) as parts, pytest.raises(Stop):
        train(replace(parts, report=After()))
    with online(training("parts", save_every=5), again := Engine(made, rounds=True)) as parts:
        train(parts)
    assert draft(parts) == draft(whole)
    tokens = whole.data.tokens
    held_out = sorted(int(tokens.lengths[one]) for one in tokens.holdout_documents)
    assert held_out not in [sorted(lengths) for lengths in again.asked], "what was read of them is still there"


def test_an_engine_that_fails_ends_the_training_in_its_own_words(training: Build) -> None:
    class Failing(Engine):
        def __call__(self, documents: Sequence[Reading]) -> Generator[DocumentStates, None, None]:
            for number, states in enumerate(super().__call__(documents)):
                if len(self.asked) == 3 and number == 2:
                    raise StepError("the server ended with code -9 while it was needed")
                yield states

    with (
        pytest.raises(StepError, match="ended with code -9"),
        online(training(), Failing(of(training()))) as inputs,
    ):
        train(inputs)


def test_states_that_leave_the_range_of_their_type_are_refused(training: Build) -> None:
    def large(ids: torch.Tensor) -> Any:
        aux, last, argmax = of(training())(ids)
        return aux * 1e9, last, argmax

    inputs = training()
    states = OnlineStates(wanted(torch.float16), inputs.data.tokens, HeldOut({}, None), Engine(large), BOUND)
    course = Course.plan(inputs.data.tokens, epochs=1, budget=64, seed=7)
    states.begin(course, 0)
    with closing(states), pytest.raises(ArtifactMismatch, match="store them as bfloat16 or float32"):
        states.document(course.batches[0][0])


def test_the_engine_s_threads_are_not_the_trainer_s(training: Build) -> None:
    before, counts = torch.get_num_threads(), set()

    def made(ids: torch.Tensor) -> Any:
        counts.add((threading.current_thread().name, torch.get_num_threads()))
        return of(training())(ids)

    with online(training(), Engine(made), threads=before + 1) as inputs:
        train(inputs)
    assert ("states", before + 1) in counts
    assert torch.get_num_threads() == before


def test_nothing_is_read_or_stored_when_no_document_is_held_out(dataset: TokenDataset, tmp_path: Path) -> None:
    engine = Engine(lambda ids: None)
    held = read_held_out(engine, wanted(), dataset, [], folder=tmp_path / "held-out", report=Silent())
    assert 0 not in held
    assert (engine.asked, [*tmp_path.iterdir()]) == ([], [])


def test_only_the_course_s_next_document_is_given(dataset: TokenDataset) -> None:
    states = OnlineStates(wanted(), dataset, HeldOut({}, None), Engine(lambda ids: None), BOUND)
    with pytest.raises(ValueError, match="document 3 is not the next one"):
        states.document(3)


def test_groups_are_whole_batches_in_order_within_a_number_of_tokens() -> None:
    course = Course(((0, 1), (2,), (3,), (1, 0), (2, 3)), (3, 5))
    found = list(groups(course, [2, 3, 4, 9], 9))
    assert found == [(0, [0, 1, 2]), (3, [3]), (4, [1, 0]), (6, [2, 3])]
