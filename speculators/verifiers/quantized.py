"""A tensor of a quantised verifier in float32 again.

Quantisers nearly always leave embedding, head and final norm as they are. Some make 8 bits of the head: a number a
tensor, a row (compressed-tensors, FBGEMM) or a block of 128 by 128 (DeepSeek's FP8) to multiply with stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from speculators.errors import UsageError

Scales = Mapping[str, torch.Tensor]
"""By the end of their name: `_scale` (factors), `_scale_inv` (also factors, despite the name), `_zero_point`."""

_WHOLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def dequantized(weight: torch.Tensor, scales: Scales, where: str) -> torch.Tensor:
    """`weight` in float32, multiplied with its scales if it has any.

    Raises UsageError, beginning with `where`, for a type that has no meaning without the quantiser's own code, for
    missing scales and for scales that do not fit.
    """
    if weight.dtype in _WHOLE:
        return weight.float()
    if weight.dtype not in _EIGHT_BITS:
        raise UsageError(
            f"{where} is stored as {weight.dtype}, which is not read; train the draft for the verifier that this one "
            "was quantised from, and serve it with this one"
        )
    factors = scales.get("_scale_inv", scales.get("_scale"))
    if factors is None:
        raise UsageError(f"{where} is stored as {weight.dtype} and there is no scale beside it")
    plain = weight.float()
    if (zero := scales.get("_zero_point")) is not None:
        plain = plain - _spread(zero.float(), weight, where)
    return plain * _spread(factors.float(), weight, where)


def _spread(factors: torch.Tensor, weight: torch.Tensor, where: str) -> torch.Tensor:
    """Factors of the whole tensor, of rows or of blocks, as something to multiply the tensor with."""
    if factors.numel() == 1:
        return factors.reshape(())
    if weight.dim() == 2 and factors.numel() == weight.shape[0]:
        return factors.reshape(-1, 1)
    if weight.dim() == factors.dim() == 2:
        sizes = [-(-size // count) for size, count in zip(weight.shape, factors.shape, strict=True)]
        blocks = [1 << (size - 1).bit_length() for size in sizes]  # blocks are powers of two, the last one cut off
        if all(
            -(-size // block) == count for size, block, count in zip(weight.shape, blocks, factors.shape, strict=True)
        ):
            wide = factors.repeat_interleave(blocks[0], 0).repeat_interleave(blocks[1], 1)
            return wide[: weight.shape[0], : weight.shape[1]]
    raise UsageError(f"{where} has the shape {tuple(weight.shape)}, and scales of the shape {tuple(factors.shape)}")
