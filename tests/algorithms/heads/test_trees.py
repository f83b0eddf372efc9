"""Trees of heads, against every path drafted for itself as a chain."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speculators.algorithms.heads.proposal import HeadsProposal
from speculators.errors import UsageError
from speculators.layers.trees import AnyShape, StaticShape, TreeShape

ALGORITHMS = {
    "medusa": "type: medusa, heads: 3, layers: 2",
    "hydra": "type: hydra, heads: 3",
    "mlp_speculator": "type: mlp_speculator, heads: 3, inner_size: 16",
}
STATIC = StaticShape(((0,), (1,), (3,), (0, 0), (0, 2), (1, 1), (3, 0), (0, 2, 0), (1, 1, 1)))
SHAPES = {"static": STATIC, "one level": StaticShape(((2,), (0,))), "dynamic": TreeShape(3, 3, 12)}


def chances(proposal: HeadsProposal, ids: torch.Tensor, aux: torch.Tensor, path: list[int]) -> torch.Tensor:
    """Log-probabilities over draft ids after a path of them."""
    found: list[torch.Tensor] = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        found.append(logits[0].log_softmax(-1))
        return torch.tensor([path[len(found) - 1] if len(found) <= len(path) else 0])

    count = len(ids)
    proposal.propose(
        proposal.new_cache(1, 9), torch.tensor([0]), ids[None], aux[None], [0], [count], len(path) + 1, choose
    )
    return found[-1]


def static_paths(proposal: HeadsProposal, ids: torch.Tensor, aux: torch.Tensor, shape: StaticShape) -> list[list[int]]:
    found = []
    for ranks in sorted(shape.paths, key=lambda one: (len(one), one)):
        path: list[int] = []
        for rank in ranks:
            path.append(int(chances(proposal, ids, aux, path).argsort(descending=True)[rank]))
        found.append(path)
    return found


def dynamic_paths(proposal: HeadsProposal, ids: torch.Tensor, aux: torch.Tensor, shape: TreeShape) -> list[list[int]]:
    met: list[tuple[float, list[int]]] = []
    frontier: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(shape.depth):
        level = []
        for score, path in frontier:
            logs = chances(proposal, ids, aux, path)
            level += [(score + float(logs[token]), [*path, token]) for token in logs.topk(shape.width).indices.tolist()]
        met += level
        frontier = sorted(level, reverse=True)[: shape.width]
    return [path for _, path in sorted(met, reverse=True)[: shape.nodes]]


def paths(tokens: list[int], parents: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_tree_s_paths_are_chains(objective_of: Any, randomly_filled: Any, name: str, shape: AnyShape) -> None:
    proposal = HeadsProposal(randomly_filled(objective_of(ALGORITHMS[name]).network))
    generator = torch.Generator().manual_seed(1)
    ids, aux = torch.randint(0, 50, (2, 3), generator=generator), torch.randn(2, 3, 24, generator=generator)
    counts = [3, 2]
    tree = proposal.propose_tree(proposal.new_cache(2, 9), torch.tensor([0, 1]), ids, aux, [0, 0], counts, shape)
    for row, count in enumerate(counts):
        own, features = ids[row, :count], aux[row, :count]
        if isinstance(shape, StaticShape):
            wanted = static_paths(proposal, own, features, shape)
        else:
            wanted = sorted(dynamic_paths(proposal, own, features, shape))
        found = paths(tree.tokens[row].tolist(), tree.parents[row].tolist())
        names = proposal.target_ids
        shown = [[token if names is None else int(names[token]) for token in path] for path in wanted]
        assert (found if isinstance(shape, StaticShape) else sorted(found)) == shown


def test_a_tree_deeper_than_there_are_heads_is_refused(objective_of: Any) -> None:
    proposal = HeadsProposal(objective_of(ALGORITHMS["medusa"]).network)
    ids, aux = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, 24)
    with pytest.raises(UsageError, match="has 3 heads and cannot propose 4 tokens"):
        proposal.propose_tree(proposal.new_cache(1, 9), torch.tensor([0]), ids, aux, [0], [1], TreeShape(4, 1, 4))
