"""Random anchors, and the weights of a block's slots."""

import pytest
import torch

from speculators.algorithms.blocks import random_anchors, reached
from speculators.algorithms.chains import find_chains, some_chains

LENGTHS = (60, 9, 1, 41)
MASK = torch.cat([torch.arange(length) >= min(3, length) for length in LENGTHS])


def noise(number):
    return torch.Generator().manual_seed(number)


def test_anchors_are_chosen_document_by_document_and_fewer_are_kept_whole():
    chains = find_chains(MASK, LENGTHS, 4)
    chosen = random_anchors(chains, 20, noise)
    assert [int((chosen.numbers == number).sum()) for number in range(4)] == [20, 5, 0, 20]
    assert set(chosen.roots.tolist()) <= set(chains.roots.tolist())
    assert torch.equal(chosen.roots, chosen.roots.sort().values)
    assert torch.equal(random_anchors(chains, 20, noise).roots, chosen.roots)
    assert not torch.equal(random_anchors(chains, 20, lambda n: noise(n + 9)).roots, chosen.roots)


def test_some_chains_live_as_long_as_they_did_and_see_what_they_saw():
    chains = find_chains(MASK, LENGTHS, 4)
    kept = torch.tensor([0, 5, len(chains.roots) - 1])
    some = some_chains(chains, kept)
    assert torch.equal(some.roots, chains.roots[kept])
    for step in range(4):
        wanted = [place for place, number in enumerate(kept.tolist()) if number in chains.alive[step].tolist()]
        assert some.alive[step].tolist() == wanted
    visible = {
        root: seen
        for span in chains.documents
        for root, seen in zip(chains.roots[span.queries].tolist(), span.visible.tolist(), strict=True)
    }
    for span in some.documents:
        assert [visible[root] for root in some.roots[span.queries].tolist()] == span.visible.tolist()
    assert some_chains(chains, kept[:0]).alive[0].tolist() == []


def test_a_slot_weighs_what_a_round_gains_from_it_and_from_those_behind_it():
    chains = find_chains(torch.tensor([0, 1, 1, 1, 1], dtype=torch.bool), (5,), 3)
    assert [alive.tolist() for alive in chains.alive] == [[0, 1, 2], [0, 1], [0]]
    chances = [torch.tensor([0.5, 0.2, 0.9]), torch.tensor([0.4, 1.0]), torch.tensor([0.0])]
    first, second, third = reached(chances, chains, 0.5)
    a, b, c = 0.75, 0.7, 0.5  # each chance mixed with certainty
    assert first.tolist() == pytest.approx([a + a * b + a * b * c, 0.6 + 0.6 * 1.0, 0.95])
    assert second.tolist() == pytest.approx([a * b + a * b * c, 0.6])
    assert third.tolist() == pytest.approx([a * b * c])
    assert torch.cat(reached(chances, chains, 1.0)).tolist() == [3, 2, 1, 2, 1, 1]
