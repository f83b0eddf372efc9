"""Batches hold every document once, within the budget, almost full, and the same on every machine."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.data.packing import fill, pack


@given(lengths=st.lists(st.integers(1, 50), max_size=200), budget=st.integers(1, 120), epoch=st.integers(0, 3))
def test_every_document_is_in_exactly_one_batch_within_the_budget(lengths, budget, epoch):
    batches = pack(lengths, budget, epoch=epoch)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert sum(lengths[number] for number in batch) <= budget or len(batch) == 1


def some_lengths(count: int) -> list[int]:
    chance = random.Random(0)
    return [min(256, int(chance.lognormvariate(4.5, 0.6)) + 8) for _ in range(count)]


@pytest.mark.parametrize(("count", "least"), [(650, 0.985), (20000, 0.99)])
def test_hardly_a_token_is_wasted(count, least):
    lengths = some_lengths(count)
    assert fill(pack(lengths, 1024), lengths, 1024) > least


def test_the_same_seed_and_epoch_give_the_same_batches():
    lengths = some_lengths(300)
    assert pack(lengths, 512, seed=1, epoch=2) == pack(lengths, 512, seed=1, epoch=2)
    assert pack(lengths, 512, seed=1, epoch=2) != pack(lengths, 512, seed=1, epoch=3)
    assert pack(lengths, 512, seed=1, epoch=2) != pack(lengths, 512, seed=2, epoch=2)
    assert pack([3, 4, 5, 6], 9, seed=0, epoch=0) == [[3, 0], [2, 1]]


def test_batches_are_not_sorted_by_length():
    lengths = some_lengths(3000)
    firsts = [max(lengths[number] for number in batch) for batch in pack(lengths, 512)]
    half = len(firsts) // 2
    assert abs(sum(firsts[:half]) / half - sum(firsts[half:]) / (len(firsts) - half)) < 15


def test_a_document_longer_than_the_budget_has_a_batch_of_its_own():
    assert sorted(sorted(batch) for batch in pack([10, 100, 10], 20)) == [[0, 2], [1]]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="holds nothing"):
        pack([1], 0)
