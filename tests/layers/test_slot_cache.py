"""Promises of the slot cache: each row keeps its own length and sees its own past, and nothing else."""

from __future__ import annotations

import pytest
import torch

from speculators.layers.slot_cache import SlotCache


def numbered(rows: int, q: int, first: int) -> torch.Tensor:
    """Keys [rows, 2, q, 3] whose value tells row and position: 100 * row + first + i."""
    values = 100.0 * torch.arange(rows)[:, None] + first + torch.arange(q)
    return values[:, None, :, None].expand(rows, 2, q, 3).contiguous()


def new_cache(for_products: bool = False) -> SlotCache:
    return SlotCache(layers=2, slots=4, kv_heads=2, head_dim=3, capacity=8, for_products=for_products)


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 0, 2]])
def test_each_row_is_written_at_its_own_length(rows: list[int]) -> None:
    cache, slots = new_cache(), torch.tensor(rows)
    for row, length in zip(rows, (1, 4, 2), strict=True):
        cache.write(0, torch.tensor([row]), torch.full((1, 2, length, 3), -1.0), torch.full((1, 2, length, 3), -2.0))
        cache.advance(torch.tensor([row]), length)
    keys, values = cache.write(0, slots, numbered(3, 2, 0), numbered(3, 2, 0) + 0.5)
    assert keys.shape == values.shape == (3, 2, 6, 3)
    for i, length in enumerate((1, 4, 2)):
        assert torch.equal(keys[i, :, :length], torch.full((2, length, 3), -1.0))
        assert torch.equal(keys[i, :, length : length + 2], numbered(3, 2, 0)[i])
        assert torch.equal(values[i, :, length : length + 2], numbered(3, 2, 0)[i] + 0.5)
    mask = cache.mask(slots, 2)
    assert mask is not None
    assert mask.shape == (3, 1, 2, 6)
    assert mask.sum(dim=-1)[:, 0].tolist() == [[2, 3], [5, 6], [3, 4]]
    assert bool(torch.isfinite(keys).all())


def test_lengths_change_only_by_advance_and_crop() -> None:
    cache, rows = new_cache(), torch.tensor([2, 1])
    cache.write(1, rows, numbered(2, 3, 0), numbered(2, 3, 0))
    assert cache.lengths.tolist() == [0, 0, 0, 0]
    cache.advance(rows, 3)
    cache.crop(rows, torch.tensor([1, 2]))
    assert cache.lengths.tolist() == [0, 2, 1, 0]
    cache.crop(rows, [9, 0])
    assert cache.lengths.tolist() == [0, 0, 1, 0], "cropping never lengthens"


def test_layers_are_separate() -> None:
    cache, rows = new_cache(), torch.tensor([0])
    cache.write(0, rows, numbered(1, 2, 0), numbered(1, 2, 0))
    keys, _ = cache.write(1, rows, numbered(1, 2, 7), numbered(1, 2, 7))
    assert torch.equal(keys, numbered(1, 2, 7))


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 0, 2]])
def test_a_cache_for_products_holds_the_same_and_is_read_without_a_copy(rows: list[int]) -> None:
    plain, cache = (SlotCache(1, 4, 2, 3, capacity=300, for_products=way) for way in (False, True))
    slots = torch.tensor(rows)
    for step, q in enumerate((5, 60, 1, 70, 1, 1)):
        new = torch.randn(3, 2, q, 3, generator=torch.Generator().manual_seed(step))
        expected, found = plain.write(0, slots, new, new + 1), cache.write(0, slots, new, new + 1)
        length = expected[0].shape[2]
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours[:, :, :length], theirs)
            assert not ours[:, :, length:].any()
        if rows[0] == 0:
            assert found[0].transpose(2, 3).is_contiguous()
            assert found[1].is_contiguous()
        seen, hidden = plain.mask(slots, q), cache.mask(slots, q)
        if seen is not None:
            assert hidden is not None
            assert torch.equal(hidden[..., :length], seen)
            assert not hidden[..., length:].any()
        for one in (plain, cache):
            one.advance(slots, q)
            one.crop(slots[:1], 30 * (step + 1))
    assert torch.equal(plain.lengths, cache.lengths)


def test_a_cache_for_products_holds_no_more_than_its_longest_slot_needs() -> None:
    plain, cache = (SlotCache(1, 3, 2, 3, capacity=400, for_products=way) for way in (False, True))
    every, short = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    for one in (plain, cache):
        new = torch.randn(3, 2, 300, 3, generator=torch.Generator().manual_seed(0))
        assert one.write(0, every, new, new)[0].shape[2] >= 300
        one.advance(every, 300)
        one.crop(every, [40, 70, 300])
        assert one.place(short, 1).end >= 71
        one.crop(every[2:], 0)
    assert cache.place(short, 1).end == 128, "the longest slot is gone"
    new = torch.randn(2, 2, 1, 3, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(cache.write(0, short, new, new), plain.write(0, short, new, new), strict=True):
        seen = cache.mask(short, 1)
        assert seen is not None
        for row, length in enumerate((41, 71)):
            assert torch.equal(ours[row, :, :length], theirs[row, :, :length])
            assert seen[row].sum() == length


def test_no_mask_is_made_where_none_is_needed() -> None:
    cache, both = new_cache(), torch.tensor([0, 1])
    assert cache.mask(both, 3) is None, "the whole of a sequence: causal"
    cache.advance(both, 3)
    assert cache.mask(both, 1) is None, "one position each, equal lengths"
    assert cache.mask(both, 2) is not None
    cache.advance(both[:1], 1)
    assert cache.mask(both, 1) is not None


def test_a_full_slot_says_so() -> None:
    cache, rows = new_cache(), torch.tensor([0])
    cache.advance(rows, 7)
    with pytest.raises(ValueError, match="9 positions, more than the cache's capacity of 8"):
        cache.write(0, rows, numbered(1, 2, 0), numbered(1, 2, 0))


def test_a_moved_slot_is_the_same_sequence() -> None:
    cache = new_cache()
    cache.write(0, torch.tensor([3]), numbered(1, 4, 0), numbered(1, 4, 0))
    cache.advance(torch.tensor([3]), 4)
    cache.move(3, 0)
    assert cache.lengths.tolist() == [4, 0, 0, 0]
    keys, _ = cache.write(0, torch.tensor([0]), numbered(1, 1, 4), numbered(1, 1, 4))
    assert torch.equal(keys, numbered(1, 5, 0))


def test_rotary_positions_of_a_slot_go_on_from_the_last_that_was_given_until_it_is_emptied() -> None:
    cache = new_cache()
    assert cache.place(torch.tensor([0, 1]), 3).rotary.tolist() == [[0, 1, 2]] * 2
    cache.turn(torch.tensor([1]), torch.tensor([[0, 1, 1, 1, 3]]))
    cache.advance(torch.tensor([0, 1]), 4)
    place = cache.place(torch.tensor([0, 1]), 3)
    assert place.positions.tolist() == [[4, 5, 6]] * 2
    assert place.rotary.tolist() == [[4, 5, 6], [3, 4, 5]]
    cache.move(1, 2)
    assert cache.place(torch.tensor([2]), 2).rotary.tolist() == [[3, 4]]
    cache.crop(torch.tensor([2]), 2)
    assert cache.place(torch.tensor([2]), 2).rotary.tolist() == [[1, 1]]
    cache.crop(torch.tensor([2]), 0)
    assert cache.place(torch.tensor([2]), 2).rotary.tolist() == [[0, 1]]
