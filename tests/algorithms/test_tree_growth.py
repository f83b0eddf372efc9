"""Growing trees over a cache, against the papers' words written out without one."""

import pytest
import torch

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.algorithms.eagle3.proposal import Eagle3Proposal
from speculators.errors import UsageError
from speculators.layers.trees import StaticShape, TreeShape

V = 30


def network(**changes):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "attention_heads": 4,
        "key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": V,
        "draft_vocab_size": V,
        "aux_layers": (1, 2, 3),
        "rope": {"rope_type": "default", "rope_theta": 100.0},
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
    }
    found = Eagle3Network(Eagle3Config(**(sizes | changes)))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 1.0, 0.4)
    if found.config.has_vocabulary_map:
        kept = torch.randperm(V)[: found.config.draft_vocab_size].sort().values
        found.d2t.copy_(kept - torch.arange(len(kept)))
        found.t2d[kept] = True
    return found.requires_grad_(False).eval()


def chances(net, ids, aux, path):
    """Log-probabilities after a path of verifier ids, everything computed anew: the proposal as a chain."""
    found = []

    def choose(logits):
        found.append(logits[0].log_softmax(-1))
        if len(found) > len(path):
            return torch.tensor([0])
        token = path[len(found) - 1]
        own = token if net.target_ids is None else int((net.target_ids == token).nonzero()[0])
        return torch.tensor([own])

    proposal = Eagle3Proposal(net)
    cache = proposal.new_cache(1, 64)
    proposal.propose(cache, torch.tensor([0]), ids[None], aux[None], [0], [len(ids)], len(path) + 1, choose)
    return found[-1]


def expected(net, ids, aux, shape):
    """{path of verifier ids: log-probability} of the nodes that are kept."""
    met, frontier = {}, [((), 0.0)]
    for _ in range(shape.depth):
        level = []
        for path, score in frontier:
            logs = chances(net, ids, aux, list(path))
            for draft_id in logs.topk(min(shape.width, len(logs))).indices.tolist():
                token = draft_id if net.target_ids is None else int(net.target_ids[draft_id])
                level.append(((*path, token), score + float(logs[draft_id])))
        met.update(level)
        frontier = sorted(level, key=lambda one: -one[1])[: shape.width]
    return dict(sorted(met.items(), key=lambda one: -one[1])[: shape.nodes])


def named(net, ids, aux, shape):
    """The paths of verifier ids that a static tree has, in the order of its nodes, each found for itself."""
    found = []
    for ranks in sorted(shape.paths, key=lambda one: (len(one), one)):
        path = []
        for rank in ranks:
            draft_id = int(chances(net, ids, aux, path).argsort(descending=True)[rank])
            path.append(draft_id if net.target_ids is None else int(net.target_ids[draft_id]))
        found.append(tuple(path))
    return found


def paths(tree, row):
    found = []
    for token, parent in zip(tree.tokens[row].tolist(), tree.parents[row].tolist(), strict=True):
        assert parent < len(found), "parents stand before their children"
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, TreeShape(depth=4, width=3, nodes=12)),
        ({"draft_vocab_size": 12, "norm_output": True}, TreeShape(depth=3, width=4, nodes=20)),
        ({"layers": 2}, TreeShape(depth=3, width=2, nodes=50)),
        ({}, TreeShape(depth=3, width=1, nodes=3)),
        ({"draft_vocab_size": 3}, TreeShape(depth=2, width=10, nodes=60)),
        ({}, TreeShape(depth=1, width=5, nodes=4)),
    ],
)
def test_the_nodes_are_those_of_the_paper_round_after_round(changes, shape):
    """Rows read different numbers of tokens; what one round wrote is gone in the next."""
    net = network(**changes)
    for row, ids, aux, tree in rounds(net, shape):
        wanted = expected(net, ids, aux, shape)
        found = paths(tree, row)
        assert sorted(found) == sorted(wanted)
        for parent in {path[:-1] for path in found}:  # siblings: likeliest first
            scores = [wanted[path] for path in found if path[:-1] == parent]
            assert scores == sorted(scores, reverse=True)


MEDUSA = StaticShape(((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 1), (0, 0, 0), (0, 0, 2), (2, 1, 0), (0, 0, 0, 0)))


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, MEDUSA),
        ({"draft_vocab_size": 12, "norm_output": True}, MEDUSA),
        ({"layers": 2}, StaticShape(((1, 1), (1,), (1, 0), (1, 1, 3), (0,)))),
        ({}, StaticShape(((0,), (0, 0), (0, 0, 0)))),
        ({}, StaticShape(((4,),))),
        ({"draft_vocab_size": 3}, StaticShape(((2,), (0,), (2, 2)))),
    ],
)
def test_a_static_tree_has_the_nodes_that_it_names_round_after_round(changes, shape):
    net = network(**changes)
    for row, ids, aux, tree in rounds(net, shape):
        assert paths(tree, row) == named(net, ids, aux, shape)


def test_a_static_tree_wider_than_the_draft_s_vocabulary_is_refused():
    with pytest.raises(UsageError, match="asks for 4 tokens after one node, and the draft has 3"):
        list(rounds(network(draft_vocab_size=3), StaticShape(((0,), (0, 3)))))


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ((), "there is no path"),
        (((0,), ()), "a path is empty"),
        (((0,), (1, 0)), r"\[1, 0\] is there and \[1\], which leads to it, is not"),
        (((0,), (1,), (0,)), "a path is there twice"),
    ],
)
def test_paths_that_are_no_tree_are_refused(named, problem):
    with pytest.raises(ValueError, match=problem):
        StaticShape(named)


def rounds(net, shape):
    """Two rounds of trees in two of three rows: (row, all it has read, its features, the trees) of each."""
    proposal = Eagle3Proposal(net)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V, (2, 20), generator=generator)
    aux = torch.randn(2, 20, net.config.aux_width, generator=generator)
    cache, slots = proposal.new_cache(3, 64), torch.tensor([2, 0])
    proposal.read(cache, slots, ids[:, :6], aux[:, :6])
    cache.crop(slots, [6, 4])
    lengths = [6, 4]
    for counts in ([2, 1], [1, 3]):
        end = [length + count for length, count in zip(lengths, counts, strict=True)]
        width = max(counts)
        new_ids = torch.stack([ids[row, start : start + width] for row, start in enumerate(lengths)])
        new_aux = torch.stack([aux[row, start : start + width] for row, start in enumerate(lengths)])
        tree = proposal.propose_tree(cache, slots, new_ids, new_aux, lengths, counts, shape)
        for row in range(2):
            yield row, ids[row, : end[row]], aux[row, : end[row]], tree
        lengths = end
        assert cache.lengths[slots].tolist() == lengths
