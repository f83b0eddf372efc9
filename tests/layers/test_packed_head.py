"""Promises of a head in blocks: the whole head's logits and argmax, over the blocks' borders."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speculators.layers import packed_head
from speculators.layers.packed_head import PackedHead
from speculators.layers.packed_linear import can_pack

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN here")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_head, "BLOCK_ROWS", 16)


@pytest.mark.parametrize("vocabulary", [7, 16, 40, 48])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_and_argmax_are_those_of_the_whole_head(vocabulary: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, vocabulary, bias=bias), torch.randn(50, 24)
    head = PackedHead(linear.weight, linear.bias, cast_back=False)
    torch.testing.assert_close(head(x), linear(x).detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(head.argmax(x), linear(x).argmax(dim=-1))


def test_the_first_of_equal_logits_wins_within_a_block_and_across_blocks() -> None:
    weight = torch.zeros(40, 4)
    weight[[5, 9, 20, 39], 0] = 1.0
    weight[[20, 39], 1] = 1.0
    head = PackedHead(weight, cast_back=False)
    assert head.argmax(torch.eye(4)[:2]).tolist() == [5, 20]
