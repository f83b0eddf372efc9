"""Which nodes of a tree see each other, and where."""

import torch

from speculators.layers.slot_cache import SlotCache
from speculators.layers.trees import Tree, tree_mask

#        newest
#        0     1
#       2 3    4
#       5
PARENTS = torch.tensor([[-1, -1, 0, 0, 1, 2], [-1, 0, 1, 2, 3, 4]])
TREE = Tree(torch.arange(12).view(2, 6), PARENTS)


def test_a_node_sees_the_newest_token_its_ancestors_and_itself():
    seen = [[place for place, flag in enumerate(row) if flag] for row in TREE.seen[0].tolist()]
    assert seen == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 1, 3, 6]]
    assert TREE.depths[0].tolist() == [0, 1, 1, 2, 2, 2, 3]
    assert torch.equal(TREE.seen[1], torch.ones(7, 7).tril().bool()), "a chain is plain causal attention"
    assert TREE.depths[1].tolist() == list(range(7))


def test_the_mask_over_a_cache_begins_where_each_row_ends():
    mask = tree_mask(TREE.seen, torch.tensor([3, 5]), 14)
    assert mask.shape == (2, 1, 7, 14)
    for row, start in enumerate((3, 5)):
        assert mask[row, 0, :, :start].all()
        assert torch.equal(mask[row, 0, :, start : start + 7], TREE.seen[row])
        assert not mask[row, 0, :, start + 7 :].any()


def test_the_kept_path_is_put_side_by_side_in_any_layout():
    for for_products in (False, True):
        cache = SlotCache(2, 3, 1, 2, 20, for_products=for_products)
        rows = torch.tensor([1])
        k = torch.arange(20.0).view(1, 1, 10, 2)
        for layer in (0, 1):
            cache.write(layer, rows, k, -k)
        cache.advance(rows, 10)
        cache.keep(1, 4, [1, 3, 4])
        assert cache.lengths.tolist() == [0, 7, 0]
        keys, values = cache.write(1, rows, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
        kept = k[:, :, [0, 1, 2, 3, 5, 7, 8]]
        assert torch.equal(keys[:, :, :7], kept)
        assert torch.equal(values[:, :, :7], -kept)
        cache.keep(1, 4, [])
        assert cache.lengths[1] == 4
