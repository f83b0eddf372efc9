"""A causal convolution inside blocks whose kernel depends on what it reads, one kernel for a group of channels.

It stands around a sublayer: one convolution of what the sublayer reads, one of what it gives, both with kernels from
what the first reads. At the start it is the identity. (DFlash-2; the arithmetic is that of vLLM's.)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

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
        total = torch.zeros_like(grouped)
        for tap in range(self.taps):
            shifted = functional.pad(grouped, (0, 0, 0, 0, tap, 0))[..., : grouped.shape[-3], :, :]
            total = total + (base[tap] + kernels[..., tap, :, None]) * shifted
        return total.flatten(-2)
