"""Products in a narrow type where the processor has units for it, and in float32 where it has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speculators.layers.products import MixedLinear, mix_precision, product_dtype


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16])
def test_a_cpu_without_units_takes_products_in_float32(wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for has_units in (True, False):
        for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
            monkeypatch.setattr(torch.ops.mkldnn, name, lambda has=has_units: has, raising=False)
        assert product_dtype(wanted) == (wanted if has_units else torch.float32)
        assert product_dtype(wanted, "cuda") == wanted, "a GPU has units for both"
    assert product_dtype(torch.float32) == torch.float32
    assert product_dtype(torch.float64) == torch.float64


def test_mixed_layers_round_operands_and_keep_their_parameters() -> None:
    network = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 2))
    names = set(network.state_dict())
    mix_precision(network, torch.bfloat16)
    assert isinstance(network[0], MixedLinear)
    assert isinstance(network[1], MixedLinear)
    assert set(network.state_dict()) == names
    x = torch.randn(3, 8)
    expected = x.bfloat16() @ network[0].weight.bfloat16().T
    torch.testing.assert_close(network[0](x), expected)
    torch.testing.assert_close(network(x), (expected @ network[1].weight.bfloat16().T).float() + network[1].bias)
    network(x).sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
