"""Linear layers whose weights are laid out once for oneDNN, two to three times faster on a CPU than torch's own.

Torch multiplies by a plain weight matrix through a general BLAS, which on few rows is far from memory speed. oneDNN
reaches it when the weight is in its blocked layout; torch's compiler uses the same two operators. Weights in bfloat16
halve the memory traffic and use the processor's matrix units; activations stay in their own type around the product.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)

ROWS_HINT = 64
"""Rows of input for which oneDNN chooses the layout; any number of rows is computed correctly and nearly as fast."""


def can_pack(dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether this build and this processor have the operators, for weights of this type."""
    operators: Any = torch.ops.mkldnn
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if torch.device(device).type != "cpu" or not available:
        return False
    if not hasattr(operators, "_linear_pointwise") or not hasattr(operators, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, with the weight held in oneDNN's layout and in `dtype`.

    The input [..., in] may have another floating type: it is cast to `dtype` and, with `cast_back`, the result
    [..., out] back to it. The weight given is not kept. A gradient does not flow.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        *,
        cast_back: bool = True,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.cast_back = dtype or weight.dtype, cast_back
        operators: Any = torch.ops.mkldnn
        self._product = operators._linear_pointwise
        with torch.no_grad():
            self._packed = operators._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), ROWS_HINT)
            self._bias = None if bias is None else bias.detach().to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._product(x.to(self.dtype), self._packed, self._bias, "none", [], "")
        return result.to(x.dtype) if self.cast_back else result

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dtype={self.dtype}"


def pack_linears(module: nn.Module, dtype: torch.dtype | None = None, *, cast_back: bool = True) -> int:
    """Replace every `nn.Linear` inside `module` by a packed one, in place; return how many.

    `dtype` is the type of the products (None: each weight's own). Each plain weight is let go as soon as its packed
    form exists, so memory grows by one matrix at a time; a matrix that something else still needs, as the embedding
    tied to a head, stays there.
    """
    packed = 0
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear and can_pack(dtype or child.weight.dtype, child.weight.device):
            setattr(module, name, PackedLinear(child.weight, child.bias, dtype, cast_back=cast_back))
            packed += 1
        else:
            packed += pack_linears(child, dtype, cast_back=cast_back)
    return packed


def packed_copy(network: Network, dtype: torch.dtype | None = None) -> Network:
    """A copy of a network for inference, with its linear layers packed (`pack_linears`); what is not, both share."""
    shared = {id(one): one for one in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    pack_linears(copied, dtype)
    return copied


def merge_linears(linears: Sequence[nn.Linear], dtype: torch.dtype | None = None) -> nn.Module:
    """One layer that gives the outputs of several side by side, in `dtype`, packed where that is possible.

    All take the same input; either all have a bias or none.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = torch.cat([linear.bias.detach() for linear in linears]) if linears[0].bias is not None else None
    if can_pack(dtype or weight.dtype, weight.device):
        return PackedLinear(weight, bias, dtype, cast_back=False)
    merged = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    merged.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return merged
