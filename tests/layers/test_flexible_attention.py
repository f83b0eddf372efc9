"""FlexAttention along chains and in blocks: the softmax over prefix and own keys at once, and its gradients.

What is compiled for a GPU is computed here by torch's own dense version of it.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from packed_documents import documents_of
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from speculators.layers.attention import chain_attention
from speculators.layers.block_attention import Window, block_attention
from speculators.layers.documents import Documents, DocumentSpan
from speculators.layers.flexible_attention import Kernels, flexible_block_attention, flexible_chain_attention
from speculators.layers.key_ranges import prefix_mask

D = 8
PACKED = {
    "several documents, one with one query": [(70, 90), (1, 30), (80, 200)],
    "whole tiles": [(128, 128), (128, 256)],
    "fewer than a tile": [(5, 7), (2, 3)],
}


def tensors(shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [one.requires_grad_() for one in made]


def chain_tensors(sizes, steps, heads, groups, dtype=torch.float64):
    n, s = (sum(one) for one in zip(*sizes, strict=True))
    own = [(n, steps, groups, D)] * 2 if steps else []
    return tensors([(n, heads, D), (s + 3, groups, D), (s + 3, groups, D), *own], dtype)


def seen_keys(documents: Documents, keys: int) -> torch.Tensor:
    """bool [n, keys]."""
    rows = []
    for span in documents:
        for visible in span.visible.tolist():
            row = torch.zeros(keys, dtype=torch.bool)
            row[span.keys.start : span.keys.start + visible] = True
            rows.append(row)
    return torch.stack(rows)


def dense_chains(documents, q, k, v, own_k=None, own_v=None):
    """All keys of the batch beside the query's own ones, under one mask and one softmax."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (one.repeat_interleave(repeats, 1) for one in (k, v))
    scores = torch.einsum("nhd,shd->nhs", q, k) / D**0.5
    scores = scores.masked_fill(~seen_keys(documents, len(k))[:, None], float("-inf"))
    if own_k is None:
        return torch.einsum("nhs,shd->nhd", scores.softmax(-1), v)
    own_k, own_v = (one.repeat_interleave(repeats, 2) for one in (own_k, own_v))
    shares = torch.cat([scores, torch.einsum("nhd,nchd->nhc", q, own_k) / D**0.5], -1).softmax(-1)
    before = torch.einsum("nhs,shd->nhd", shares[..., : len(k)], v)
    return before + torch.einsum("nhc,nchd->nhd", shares[..., len(k) :], own_v)


def gradients(out, inputs):
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.autograd.grad((out.double() * weights).sum(), inputs)


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize(("heads", "groups", "is_ordered"), [(6, 2, True), (4, 4, False)])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("sizes", PACKED.values(), ids=PACKED)
def test_chains_attend_as_in_one_softmax(sizes, steps, heads, groups, is_ordered):
    """Whether or not the queries of a document lie in order of what they see."""
    documents = documents_of(*sizes, is_ordered=is_ordered)
    q, k, v, *own = ours = chain_tensors(sizes, steps, heads, groups)
    out = flexible_chain_attention(q, (k, v), tuple(own) or None, documents)
    wanted = dense_chains(documents, *ours)
    torch.testing.assert_close(out, wanted)
    plain = chain_attention(q, (k, v), tuple(own) or None, documents, fused=False)
    torch.testing.assert_close(out, plain)
    found = gradients(out, ours)
    for reference in (wanted, plain):
        for one, other in zip(found, gradients(reference, ours), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("flexible_gradients")
def test_what_a_query_s_prefix_weighs_has_a_gradient():
    """Two keys before and one of its own: values are such that the log-sum-exp's gradient is all there is."""
    documents = Documents((DocumentSpan(slice(0, 1), slice(0, 2), torch.tensor([2])),))
    q, k, v, own_k, own_v = tensors([(1, 1, D), (2, 1, D), (2, 1, D), (1, 1, 1, D), (1, 1, 1, D)])
    with torch.no_grad():
        v.fill_(1.0)  # whichever of the two is attended to
        own_v.fill_(0.0)
    out = flexible_chain_attention(q, (k, v), (own_k, own_v), documents)
    scores = torch.stack([*(k[:, 0] @ q[0, 0]), own_k[0, 0, 0] @ q[0, 0]]) / D**0.5
    share = scores.softmax(0)[:2].sum()
    found = torch.autograd.grad(out.sum(), (q, k, own_k))
    wanted = torch.autograd.grad(share * D, (q, k, own_k))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0.01


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize("steps", [0, 3])
def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_plain_way(steps):
    sizes = PACKED["several documents, one with one query"]
    documents = documents_of(*sizes)
    q, k, v, *own = low = chain_tensors(sizes, steps, 6, 2, torch.bfloat16)
    high = [one.detach().double().requires_grad_() for one in low]
    wanted = dense_chains(documents, *high)
    truth = [wanted.detach(), *gradients(wanted, high)]

    def errors(out):
        found = [out.detach(), *gradients(out, low)]
        assert out.dtype == torch.bfloat16
        return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, truth, strict=True)]

    mine = errors(flexible_chain_attention(q, (k, v), tuple(own) or None, documents))
    plain = errors(chain_attention(q, (k, v), tuple(own) or None, documents, fused=False))
    assert max(mine) < 0.02
    assert all(one < 1.2 * other for one, other in zip(mine, plain, strict=True))


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize(
    "window", [None, *(Window(size, is_causal) for size in (1, 2, 60) for is_causal in (False, True))]
)
@pytest.mark.parametrize("sizes", [[(40, 90), (1, 30), (20, 60)], [(2, 3), (1, 1)]])
def test_blocks_attend_as_they_do_plainly(sizes, window):
    """Through a small window some queries see nothing of the prefix."""
    documents, width = documents_of(*sizes), 4
    n, s = (sum(one) for one in zip(*sizes, strict=True))
    q, k, v, *own = ours = tensors([(n, width, 6, D), *[(s, 2, D)] * 2, *[(n, width, 2, D)] * 2])
    out = flexible_block_attention(q, (k, v), (own[0], own[1]), documents, window)
    wanted = block_attention(q, (k, v), (own[0], own[1]), documents, window)
    torch.testing.assert_close(out, wanted)
    for one, other in zip(gradients(out, ours), gradients(wanted, ours), strict=True):
        torch.testing.assert_close(one, other)


def lengths():
    """Ten batches of documents, no two of a size."""
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        yield [tuple(torch.randint(65, 300, (2,), generator=generator).tolist()) for _ in range(2 + number % 3)]


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize("window", [None, Window(60, is_causal=True)])
def test_one_graph_of_blocks_fits_all_lengths(window):
    counters.clear()
    kernels = Kernels.compiled("aot_eager")
    for sizes in lengths():
        documents = documents_of(*sizes)
        n, s = (sum(one) for one in zip(*sizes, strict=True))
        ours = tensors([(n, 2, 4, D), *[(s, 2, D)] * 2, *[(n, 2, 2, D)] * 2], torch.float32)
        q, prefix, own = ours[0], (ours[1], ours[2]), (ours[3], ours[4])
        out = flexible_block_attention(q, prefix, own, documents, window, kernels)
        wanted = block_attention(q, prefix, own, documents, window)
        torch.testing.assert_close(out, wanted)
        for one, other in zip(gradients(out, ours), gradients(wanted, ours), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("flexible_gradients")
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_one_graph_fits_all_lengths(steps):
    """One with gradients and one without, and no more for further steps of the chains."""
    counters.clear()
    kernels = Kernels.compiled("aot_eager")
    for number, sizes in enumerate(lengths()):
        documents = documents_of(*sizes)
        drafted = steps + number % 3 if steps > 1 else steps
        q, k, v, *own = ours = chain_tensors(sizes, drafted, 4, 2, torch.float32)
        wanted = dense_chains(documents, *ours)
        for is_training in (True, False):
            with torch.set_grad_enabled(is_training):
                out = flexible_chain_attention(q, (k, v), tuple(own) or None, documents, kernels)
            torch.testing.assert_close(out, wanted)
            if is_training:
                for one, other in zip(gradients(out, ours), gradients(wanted, ours), strict=True):
                    torch.testing.assert_close(one, other)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_what_is_generated_for_a_mask_fits_all_lengths():
    """The prefix without log-sum-exps is what torch generates code for on a CPU."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    for sizes in lengths():
        documents = documents_of(*sizes)
        q, k, v = (one.detach() for one in chain_tensors(sizes, 0, 4, 2, torch.float32))
        mask = prefix_mask(documents, len(k), q.device)
        by_head = [one.transpose(0, 1)[None].contiguous() for one in (q, k, v)]
        for one in by_head:
            torch._dynamo.mark_static(one, [1, 3])
        out = compiled(*by_head, block_mask=mask, enable_gqa=True)[0].transpose(0, 1)
        torch.testing.assert_close(out, dense_chains(documents, q, k, v), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
