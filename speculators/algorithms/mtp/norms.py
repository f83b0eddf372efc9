"""The norms of heads, which in some families multiply by 1 + weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from speculators.algorithms.mtp.config import MtpConfig


class ShiftedRMSNorm(nn.Module):
    """RMSNorm that multiplies by 1 + weight, in at least float32, as in Gemma, Qwen3-Next and Qwen3.5."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = functional.rms_norm(x.to(wide), self.weight.shape, 1 + self.weight.to(wide), self.eps)
        return normed.to(x.dtype)


def norm_of(config: MtpConfig, size: int) -> nn.Module:
    """A norm of `size` channels, of the family's kind."""
    kind = ShiftedRMSNorm if config.how.shifts_norms else nn.RMSNorm
    return kind(size, eps=config.rms_norm_eps)
