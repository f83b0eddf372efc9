"""Promises of packed weights: the same products, for any number of rows, in either type."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speculators.layers.packed_linear import PackedLinear, can_pack, pack_linears

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN here")


@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (7, 24), (3, 50, 24)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_equal_plain_ones(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(shape)
    packed = PackedLinear(linear.weight, linear.bias)
    torch.testing.assert_close(packed(x), linear(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="the processor has no bfloat16 products")
def test_bfloat16_weights_take_and_give_float32() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40), torch.randn(5, 24)
    packed = PackedLinear(linear.weight, linear.bias, torch.bfloat16)
    expected = nn.functional.linear(x.bfloat16(), linear.weight.bfloat16(), linear.bias.bfloat16()).float()
    assert packed(x).dtype == torch.float32
    torch.testing.assert_close(packed(x), expected.detach(), rtol=2e-2, atol=2e-2)


def test_every_linear_inside_is_replaced_and_its_weight_let_go() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 4, bias=False)))
    x = torch.randn(2, 8)
    before = model(x).detach()
    assert pack_linears(model) == 2
    assert list(model.parameters()) == []
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
