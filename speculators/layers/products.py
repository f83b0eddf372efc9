"""Matrix products in a lower precision around float32 masters: what "bfloat16 training" means here.

Weights, their gradients, norms, softmax and the residual stream stay in float32; only the operands of products are
rounded, forward and backward. Measured on a CPU with bfloat16 units this is four times faster than float32; on one
without them it would be eight times slower, so there nothing is rounded (`product_dtype`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_UNITS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def product_dtype(wanted: torch.dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """The type in which products are taken when `wanted` is asked for: float32 on a CPU without units for `wanted`.

    Such a processor computes narrow types number by number, far slower than it computes float32.
    """
    if torch.device(device).type != "cpu" or wanted not in _UNITS:
        return wanted
    has_units: Any = getattr(torch.ops.mkldnn, _UNITS[wanted], None)
    return wanted if has_units is not None and has_units() else torch.float32


class MixedLinear(nn.Module):
    """`nn.Linear` on the same parameters, its three products (forward, two backward) taken in `dtype`.

    The result [..., out] is in `dtype`, or in the bias's own type where there is a bias; gradients arrive at the weight
    in the weight's own type.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.dtype = dtype
        self._held: torch.Tensor | None = None

    @property
    def rounded(self) -> torch.Tensor:
        """The weight in `dtype`, as it is now."""
        return self.weight.detach().to(self.dtype) if self._held is None else self._held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = _Product.apply(x, self.weight, self.rounded)  # type: ignore[no-untyped-call]
        return result if self.bias is None else result + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, dtype={self.dtype}"


def mix_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Replace every `nn.Linear` inside `module` by a `MixedLinear` on the same parameters, in place.

    Names of parameters do not change, so a state dict fits before and after.
    """
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:  # the same parameters go in, so that nothing about them changes
            setattr(module, name, MixedLinear(child.weight, dtype, child.bias))
        else:
            mix_precision(child, dtype)


@contextmanager
def weights_rounded_once(module: nn.Module) -> Iterator[None]:
    """Inside, every `MixedLinear` of `module` multiplies by a weight that was rounded on entering.

    The weights must not change there. (Tensors' version counters cannot tell: fused optimizers do not raise them.)
    """
    mixed = [child for child in module.modules() if isinstance(child, MixedLinear)]
    for linear in mixed:
        linear._held = linear.rounded
    try:
        yield
    finally:
        for linear in mixed:
            linear._held = None


def operand(linear: Any, x: torch.Tensor) -> torch.Tensor:
    """`x` in the type in which `linear` multiplies, so that several layers reading it share one rounding."""
    return x.to(linear.dtype) if isinstance(linear, MixedLinear) else x


def rounded_weight(linear: Any) -> torch.Tensor:
    """The weight with which `linear` multiplies, without gradient."""
    weight: torch.Tensor = linear.rounded if isinstance(linear, MixedLinear) else linear.weight
    return weight.detach()


class _Product(torch.autograd.Function):
    """`x @ weight.T` in the type of `rounded`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        low = x.to(rounded.dtype)
        ctx.save_for_backward(low, rounded)
        ctx.dtypes = x.dtype, weight.dtype
        return functional.linear(low, rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        low, rounded = ctx.saved_tensors
        gradient = gradients[0].to(rounded.dtype)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ rounded).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            flat = gradient.reshape(-1, gradient.shape[-1])
            to_weight = (flat.t() @ low.reshape(-1, low.shape[-1])).to(ctx.dtypes[1])
        return to_x, to_weight, None
