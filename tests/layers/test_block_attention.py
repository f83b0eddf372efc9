"""Blocks see their document up to themselves and all of their own; in pieces or at once, with the same gradients."""

import pytest
import torch

from speculators.layers.block_attention import Window, block_attention
from speculators.layers.documents import Documents, DocumentSpan

HEADS, GROUPS, D, B = 6, 2, 4, 3
DOCUMENTS = Documents(
    (
        DocumentSpan(slice(0, 4), slice(0, 7), torch.tensor([1, 3, 4, 7])),
        DocumentSpan(slice(4, 5), slice(7, 12), torch.tensor([5])),
    )
)


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, B, HEADS, D), (12, GROUPS, D), (12, GROUPS, D), (5, B, GROUPS, D), (5, B, GROUPS, D)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


def dense(q, k, v, own_k, own_v, window=None):
    """One query and one head at a time."""
    rows = []
    for document in DOCUMENTS:
        for place, block in enumerate(range(document.queries.start, document.queries.stop)):
            seen = slice(document.keys.start, document.keys.start + int(document.visible[place]))
            for slot in range(B):
                for head in range(HEADS):
                    group = head // (HEADS // GROUPS)
                    keys = torch.cat([k[seen, group], own_k[block, :, group]])
                    values = torch.cat([v[seen, group], own_v[block, :, group]])
                    back = int(document.visible[place]) + slot - torch.arange(len(keys))
                    kept = torch.ones(len(keys), dtype=torch.bool)
                    if window is not None:
                        kept = (back < window.size) & ((back >= 0) if window.is_causal else (back > -window.size))
                    rows.append((keys[kept] @ q[block, slot, head] / D**0.5).softmax(0) @ values[kept])
    return torch.stack(rows).view(5, B, HEADS, D)


@pytest.mark.parametrize(
    "window", [None, *(Window(size, causal) for size in (1, 2, 4, 50) for causal in (False, True))]
)
@pytest.mark.parametrize("scores", [1, 150, 1 << 20])
def test_attention_and_gradients_are_those_of_single_queries(scores, window):
    ours, theirs = tensors(), tensors()
    out = block_attention(ours[0], (ours[1], ours[2]), (ours[3], ours[4]), DOCUMENTS, window, scores)
    wanted = dense(*theirs, window)
    torch.testing.assert_close(out, wanted)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
