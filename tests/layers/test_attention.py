"""Attention of long documents: in parts, whose scores are computed again in the backward pass."""

from __future__ import annotations

import pytest
import torch

from speculators.layers import attention
from speculators.layers.attention import chain_attention
from speculators.layers.documents import Documents, DocumentSpan


def gradients(*, fused: bool = False, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], int]:
    """Of a sum over two documents with drafted keys; and how many elements the graph kept."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(9, 4, 8, generator=generator)
    others = [
        torch.randn(rows, 2, *more, 8, generator=generator) for rows, more in ((12, ()), (12, ()), (9, (3,)), (9, (3,)))
    ]
    q, k, v = (one.to(dtype).requires_grad_() for one in (q, *others[:2]))
    own_k, own_v = (one.to(dtype).transpose(1, 2).contiguous().requires_grad_() for one in others[2:])
    first = DocumentSpan(slice(0, 4), slice(0, 5), torch.tensor([2, 3, 4, 5]))
    second = DocumentSpan(slice(4, 9), slice(5, 12), torch.tensor([3, 4, 5, 6, 7]))
    documents = Documents((first, second))
    out = chain_attention(q, (k, v), (own_k, own_v), documents, fused=fused)
    kept = sum(one.numel() for one in out.grad_fn.saved_tensors)  # type: ignore[union-attr]
    (out * torch.arange(8)).sum().backward()  # type: ignore[no-untyped-call]
    return [one.grad for one in (q, k, v, own_k, own_v) if one.grad is not None], kept


def test_scores_of_long_documents_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, kept = gradients()
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    found, left = gradients()
    assert len(found) == 5
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert kept - left == 4 * (4 * (5 + 3) + 5 * (7 + 3))


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str)
def test_parts_of_a_document_come_to_what_it_comes_to_as_a_whole(
    fused: bool, dtype: torch.dtype, apart: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = gradients()
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    monkeypatch.setattr(attention, "PART_SCORES", 4 * 7 * 2)  # two queries of the second document
    found, _ = gradients(fused=fused, dtype=dtype)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=apart, atol=apart)


def test_a_part_has_no_keys_that_none_of_its_queries_sees() -> None:
    document = DocumentSpan(slice(4, 9), slice(5, 12), torch.tensor([3, 4, 5, 6, 7]))
    assert [(part.queries, part.keys, part.visible.tolist()) for part in document.parts(14)] == [
        (slice(4, 6), slice(5, 9), [3, 4]),
        (slice(6, 8), slice(5, 11), [5, 6]),
        (slice(8, 9), slice(5, 12), [7]),
    ]
