"""A causal convolution inside blocks whose kernel depends on what it reads, one kernel for a group of channels.

It stands around a sublayer: one convolution of what the sublayer reads, one of what it gives, both with kernels from
what the first reads. At the start it is the identity. (DFlash-2; the arithmetic is that of vLLM's.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from speculators.layers.products import operand


class GroupedConvolution(nn.Module):
    """`base_kernel` [2, taps, h] is fixed for every place; `kernel_projection` adds what depends on the place."""

    def __init__(self, hidden_size: int, taps: int, group_size: int) -> None:
        super().__init__()
        self.taps, self.groups = taps, hidden_size // group_size
        self.base_kernel = nn.Parameter(torch.zeros(2, taps, hidden_size))
        self.kernel_projection = nn.Linear(hidden_size, 2 * taps * self.groups, bias=False)

    def before(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the sublayer reads for x [..., B, h], and the kernels [..., B, taps, groups] of what it gives."""
        kernels = self.kernel_projection(operand(self.kernel_projection, x)).to(x.dtype)
        kernels = kernels.view(*x.shape[:-1], 2, self.taps, self.groups)
        return self._convolved(x, kernels[..., 0, :, :], 0), kernels[..., 1, :, :]

    def after(self, y: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """What goes to the stream of the sublayer's y [..., B, h]."""
        return self._convolved(y.to(kernels.dtype), kernels, 1)

    def identity(self) -> None:
        """Make it the identity."""
        self.base_kernel.zero_()
        self.base_kernel[:, 0] = 1
        self.kernel_projection.weight.zero_()

    def _convolved(self, x: torch.Tensor, kernels: torch.Tensor, side: int) -> torch.Tensor:
        grouped = x.view(*x.shape[:-1], self.groups, -1)
        base = self.base_kernel[side].view(self.taps, self.groups, -1)
        result: torch.Tensor = _Convolution.apply(grouped, base, kernels)  # type: ignore[no-untyped-call]
        return result.flatten(-2)


class _Convolution(torch.autograd.Function):
    """Keeps what it reads and the kernels alone: kernels of all channels, shifted inputs and products are many times
    as large, and quickly made again.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """`x` [..., B, groups, channels], `base` [taps, groups, channels], `kernels` [..., B, taps, groups]."""
        ctx.save_for_backward(x, base, kernels)
        total = torch.zeros_like(x)
        for tap, (now, then) in enumerate(_shifts(x.shape[-3], len(base))):
            total[..., now, :, :].addcmul_(_kernel(base, kernels, tap)[..., now, :, :], x[..., then, :, :])
        return total

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, base, kernels = ctx.saved_tensors
        to_x, to_base, to_kernels = torch.zeros_like(x), torch.zeros_like(base), torch.zeros_like(kernels)
        for tap, (now, then) in enumerate(_shifts(x.shape[-3], len(base))):
            given = slope[..., now, :, :]
            to_x[..., then, :, :].addcmul_(_kernel(base, kernels, tap)[..., now, :, :], given)
            product = given * x[..., then, :, :]
            to_kernels[..., now, tap, :] = product.sum(-1)
            to_base[tap] = product.flatten(0, -3).sum(0)
        return to_x, to_base, to_kernels


def _shifts(places: int, taps: int) -> list[tuple[slice, slice]]:
    """For every tap the places of a block that it writes, and those that it reads for them."""
    return [(slice(tap, places), slice(0, max(0, places - tap))) for tap in range(taps)]


def _kernel(base: torch.Tensor, kernels: torch.Tensor, tap: int) -> torch.Tensor:
    """What a tap multiplies with, [..., B, groups, channels]."""
    return base[tap] + kernels[..., tap, :, None]
