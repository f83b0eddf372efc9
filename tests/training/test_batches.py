"""Every epoch trains on every document once, in an order of the seed alone; states stay with their tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from speculators.data.tokens import TokenDataset
from speculators.training.batches import Course
from speculators.training.loop import TrainingInputs
from speculators.training.validation import answers, walk


@pytest.mark.parametrize("budget", [24, 64, 10_000])
def test_an_epoch_is_every_training_document_once(dataset: TokenDataset, budget: int) -> None:
    course = Course.plan(dataset, epochs=3, budget=budget, seed=1)
    start = 0
    for end in course.epoch_ends:
        seen = [number for batch in course.batches[start:end] for number in batch]
        assert sorted(seen) == dataset.train_documents
        start = end
    assert start == len(course.batches)
    for batch in course.batches:
        assert sum(int(dataset.lengths[number]) for number in batch) <= max(budget, int(dataset.lengths.max()))


def test_the_order_is_the_seeds(dataset: TokenDataset) -> None:
    def course(seed: int) -> Course:
        return Course.plan(dataset, epochs=2, budget=64, seed=seed)

    assert course(1) == course(1) != course(2)
    first = course(1)
    assert set(first.batches[: first.epoch_ends[0]]) != set(first.batches[first.epoch_ends[0] :])


def test_a_batch_holds_whole_documents_with_their_own_states(training: Callable[..., TrainingInputs]) -> None:
    data = training().data
    batch = data.batch([5, 2])
    start = 0
    for number, length in zip([5, 2], batch.lengths, strict=True):
        span = slice(start, start + length)
        ids, mask = data.tokens.document(number)
        aux, last, argmax = data.states.document(number)
        assert torch.equal(batch.input_ids[span], ids)
        assert torch.equal(batch.loss_mask[span], mask)
        assert torch.equal(batch.aux[span], aux)
        assert torch.equal(batch.last[span], last)
        assert torch.equal(batch.argmax[span], argmax.long())
        start += length


def test_answers_are_the_runs_of_the_mask() -> None:
    assert answers(torch.tensor([0, 0, 1, 1, 0, 1], dtype=torch.bool)) == [(2, 4), (5, 6)]
    assert answers(torch.ones(3, dtype=torch.bool)) == [(0, 3)]
    assert answers(torch.zeros(3, dtype=torch.bool)) == []


def test_a_walk_counts_rounds_as_decoding_makes_them() -> None:
    """Tokens 2..9, the first from the prompt's pass; accepted lengths by the newest token."""
    lengths = [0, 0, 2, 9, 9, 0, 1, 9, 9, 9]
    found = walk(lengths, 2, 10, steps=2)
    # From 2: two stand and one more (newest 5); from 5: none (6); from 6: one and one more (8); from 8: the stop token.
    assert (found.rounds, found.tokens, found.judged, found.accepted) == (4, 7, (4, 2), (3, 1))
    assert found.acceptance_length == pytest.approx(7 / 4)
    assert found.positions == (3 / 4, 1 / 2)
    cut = walk(lengths, 2, 10, steps=2, is_stopped=False)
    # A limit of tokens leaves the last one to the verifier: its round judges nothing.
    assert (cut.rounds, cut.tokens, cut.judged) == (4, 7, (3, 2))
