"""Losslessness of trees on a vocabulary so small that the whole joint distribution can be written down."""

import itertools

import pytest
import torch
from scipy.stats import chi2

from speculators.algorithms.tree_growth import as_tree, growing
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.layers.trees import StaticShape, TreeShape

SIZE, PROMPT = 4, [2, 1]
SHAPES = {
    "dynamic": TreeShape(depth=3, width=2, nodes=6),
    "static": StaticShape(((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 1))),
}


class Cache:
    """What each slot has read: (token, the place of the one before it)."""

    def __init__(self, slots):
        self.read = [[] for _ in range(slots)]

    def crop(self, rows, lengths):
        kept = [lengths] * len(rows) if isinstance(lengths, int) else list(lengths)
        for row, length in zip(rows.tolist(), kept, strict=True):
            del self.read[row][int(length) :]

    def keep(self, row, start, kept):
        self.read[row] = self.read[row][:start] + [self.read[row][start + place] for place in kept]

    def move(self, source, destination):
        self.read[destination] = list(self.read[source])


class Output:
    def __init__(self, logits, aux):
        self.logits, self.aux = logits, aux


class ToyVerifier:
    """The next token depends on the last two; the feature of a position is its number and its token."""

    def __init__(self):
        self.table = 1.5 * torch.randn(SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def new_cache(self, slots, capacity):
        return Cache(slots)

    def forward(self, input_ids, cache, rows, logits, tree=None):
        scores, features = [], []
        for b, (row, tokens) in enumerate(zip(rows.tolist(), input_ids.tolist(), strict=True)):
            start = list(cache.read[row])
            for place, token in enumerate(tokens):
                if tree is None or place == 0:
                    before, depth = (start + tokens[:place])[-1:], place
                else:
                    parent = int(tree.parents[b, place - 1])
                    before, depth = [tokens[parent + 1]], int(tree.depths[b, place])
                scores.append(self.table[before[0] if before else 0, token])
                features.append([float(len(start) + depth), float(token)])
                cache.read[row].append(token)
        shape = (*input_ids.shape, -1)
        found = torch.stack(scores).view(shape)
        wanted = None if logits is None else found if logits == "all" else found[:, -1:]
        return Output(wanted, torch.tensor(features).view(shape))


class ToyProposal:
    """Depends on the last token only; refuses anything but true features, each once, in order."""

    def __init__(self, kept=None):
        self.target_ids = None if kept is None else torch.tensor(kept)
        size = SIZE if kept is None else len(kept)
        self.table = 1.5 * torch.randn(SIZE, size, generator=torch.Generator().manual_seed(1))

    def new_cache(self, slots, capacity):
        return Cache(slots)

    def read(self, cache, rows, next_ids, aux):
        for row, ids, features in zip(rows.tolist(), next_ids.tolist(), aux.tolist(), strict=True):
            for token, (position, own) in zip(ids, features, strict=True):
                cache.read[row].append((int(position), int(own), token))

    def propose_tree(self, cache, rows, next_ids, aux, lengths, counts, shape):
        assert [len(cache.read[row]) for row in rows.tolist()] == list(lengths)
        self.read(cache, rows, next_ids, aux)
        cache.crop(rows, [length + count for length, count in zip(lengths, counts, strict=True)])
        for row in rows.tolist():
            history = cache.read[row]
            assert [position for position, _, _ in history] == list(range(len(history)))
            assert all(before[2] == after[1] for before, after in itertools.pairwise(history))
        growth = growing(shape)
        last = torch.tensor([[cache.read[row][-1][2]] for row in rows.tolist()])
        for _ in range(shape.depth):
            frontier = growth.grow(self.table[last])
            last = frontier.tokens if self.target_ids is None else self.target_ids[frontier.tokens]
        return as_tree(*growth.harvest(), self.target_ids)


def following(verifier, before, last, request):
    weights = verifier.table[before, last].double().div(request.temperature).softmax(-1).tolist()
    order = sorted(range(SIZE), key=lambda i: -weights[i])[: request.top_k or SIZE]
    whole, mass, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if mass >= request.top_p * whole:
            break
        kept.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in kept else 0.0 for i in range(SIZE)]


def p_value(counts, verifier, request, total):
    """Of Pearson's test over all texts; cells expected fewer than 8 times are put together."""
    statistic, cells, rest, rest_counted = 0.0, 0, 0.0, 0
    for text in itertools.product(range(SIZE), repeat=request.max_new_tokens):
        whole, probability = [*PROMPT, *text], 1.0
        for i in range(2, len(whole)):
            probability *= following(verifier, whole[i - 2], whole[i - 1], request)[whole[i]]
        expected, counted = probability * total, counts.get(text, 0)
        if probability == 0:
            assert counted == 0
        elif expected < 8:
            rest, rest_counted = rest + expected, rest_counted + counted
        else:
            statistic, cells = statistic + (counted - expected) ** 2 / expected, cells + 1
    if rest > 0:
        statistic, cells = statistic + (rest_counted - rest) ** 2 / rest, cells + 1
    return float(chi2.sf(statistic, cells - 1))


def counted(run_all, verifier, kept, requests, shape="dynamic"):
    decoder = Decoder(verifier, ToyProposal(kept), slots=64, capacity=8, tree=SHAPES[shape])
    counts, accepted, judged = {}, 0, 0
    for commits in run_all(decoder, requests):
        text = tuple(token for commit in commits for token in commit.tokens)
        counts[text] = counts.get(text, 0) + 1
        accepted += sum(commit.accepted for commit in commits)
        judged += sum(commit.proposed for commit in commits)
    assert 0.1 < accepted / judged < 0.98
    return counts


@pytest.mark.parametrize(
    ("kept", "temperature", "top_k", "top_p"),
    [(None, 1.0, None, 1.0), ((0, 2, 3), 0.8, None, 0.9), ((1, 3), 1.3, 3, 1.0)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_with_trees_leaves_the_joint_distribution_as_it_is(run_all, kept, temperature, top_k, top_p, shape):
    verifier, total = ToyVerifier(), 2500
    requests = [Request(PROMPT, 4, temperature, top_p, top_k, seed=seed) for seed in range(total)]
    assert p_value(counted(run_all, verifier, kept, requests, shape), verifier, requests[0], total) > 0.001


def test_the_test_would_notice_a_slightly_wrong_distribution(run_all):
    verifier, total = ToyVerifier(), 2500
    requests = [Request(PROMPT, 4, 1.25, seed=seed) for seed in range(total)]
    assert p_value(counted(run_all, verifier, None, requests), verifier, Request(PROMPT, 4, 1.0), total) < 1e-6
