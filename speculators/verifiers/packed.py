"""A packed matrix of a quantised verifier in float32 again: values of a few bits, several to an int32 from its lowest.

GPTQ: `qweight` [h*bits/32, V], `qzeros` [groups, V*bits/32] (in its first format one less than meant), `scales`
[groups, V]; `g_idx` [h] says of which group an input is.
AWQ: `qweight` [h, V/8], `qzeros` [groups, V/8], the columns of a word in an order of their own; `scales` [groups, V].
compressed-tensors: `weight_packed` [V, h*bits/32], its values moved up by half of their range, `weight_scale`
[V, groups], and where there are any `weight_zero_point` [V*bits/32, groups], moved up as well, and `weight_g_idx` [h].

Formats are those of GPTQModel, AutoAWQ and compressed-tensors; a matrix comes back as a linear layer has it, [V, h].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from speculators.errors import UsageError

PARTS = {
    "qweight": ("qweight", "qzeros", "scales", "g_idx"),
    "weight_packed": ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
}
"""By the name of the packed values: everything that may stand beside them."""

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which column of eight is in the lowest four bits of a word, in the next, and so on."""
_BITS = (2, 4, 8)

Parts = Mapping[str, torch.Tensor]


def unpacked(parts: Parts, quantization: Mapping[str, Any], where: str) -> torch.Tensor:
    """The matrix, float32 [V, h]; `quantization` is the verifier's `quantization_config`.

    Raises UsageError, beginning with `where`, for a format that is not one of these, and for parts that are missing or
    do not go together.
    """
    try:
        if "weight_packed" in parts:
            return _compressed(parts)
        kind = quantization.get("quant_method")
        if kind == "awq" and str(quantization.get("version", "gemm")).lower() == "gemm":
            return _awq(parts)
        if kind == "gptq":
            is_first = quantization.get("checkpoint_format", "gptq") == "gptq"
            return _gptq(parts, int(quantization.get("bits", 4)), zeros_below=int(is_first))
    except KeyError as error:
        raise UsageError(f"{where} is packed, and {error.args[0]} is not beside it") from error
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {tuple(part.shape)}" for name, part in parts.items())
        raise UsageError(f"{where} is packed, and its parts do not go together: {shapes}") from error
    kind = " ".join(str(quantization[name]) for name in ("quant_method", "version") if quantization.get(name))
    raise UsageError(
        f"{where} is packed in a way that is not read ({kind or 'the config does not say which'}); train the draft for "
        "the verifier that this one was quantised from, and serve it with this one"
    )


def _gptq(parts: Parts, bits: int, zeros_below: int) -> torch.Tensor:
    values = _unpacked(parts["qweight"], bits, 0)  # [h, V]
    zeros = _unpacked(parts["qzeros"], bits, 1).int() + zeros_below  # [groups, V]
    groups = parts["g_idx"].long() if "g_idx" in parts else _groups(len(values), len(zeros))
    return _scaled(values, zeros.float(), parts["scales"].float(), groups).T.contiguous()


def _awq(parts: Parts) -> torch.Tensor:
    order = torch.tensor(AWQ_ORDER).argsort()

    def in_order(words: torch.Tensor) -> torch.Tensor:
        return _unpacked(words, 4, 1).view(len(words), -1, 8)[..., order].flatten(1)

    values, zeros = in_order(parts["qweight"]), in_order(parts["qzeros"])
    groups = _groups(len(values), len(zeros))
    return _scaled(values, zeros.float(), parts["scales"].float(), groups).T.contiguous()


def _compressed(parts: Parts) -> torch.Tensor:
    words, scales = parts["weight_packed"], parts["weight_scale"].float()
    rows, columns = parts["weight_shape"].tolist()
    bits = next((bits for bits in _BITS if -(-columns * bits // 32) == words.shape[1]), 0)
    values = _unpacked(words, bits, 1)[:, :columns]
    zeros = torch.full_like(scales, 1 << (bits - 1))
    if "weight_zero_point" in parts:
        zeros = _unpacked(parts["weight_zero_point"], bits, 0)[:rows].float()
    groups = parts["weight_g_idx"].long() if "weight_g_idx" in parts else _groups(columns, scales.shape[1])
    return _scaled(values.T, zeros.T, scales.T, groups).T.contiguous()


def _scaled(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """`values` [h, V] less the zero points of their groups, times the scales of these, both [groups, V]."""
    return (values.float() - zeros[groups]) * scales[groups]


def _groups(inputs: int, count: int) -> torch.Tensor:
    """The group of every input, when they are alike and in order."""
    return torch.arange(inputs) // -(-inputs // count)


def _unpacked(words: torch.Tensor, bits: int, along: int) -> torch.Tensor:
    """uint8 values of int32 `words`, 32 / bits times as many in the direction `along`."""
    if bits not in _BITS or words.dtype != torch.int32:
        raise ValueError(f"values of {bits} bits in words of {words.dtype}")
    several = 32 // bits
    shape = list(words.shape)
    shape[along] *= several
    values = torch.empty(shape, dtype=torch.uint8)
    for place in range(several):
        which = (slice(place, None, several), slice(None))
        values[which if along == 0 else which[::-1]] = ((words >> (bits * place)) & ((1 << bits) - 1)).to(torch.uint8)
    return values
